"""Readers of the benchmarks' annotation files: what they give, and what they refuse."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blip.data.annotations import (
    Statement,
    coco_image_id,
    read_answer_list,
    read_caption_rows,
    read_nocaps,
    read_questions,
    read_retrieval_set,
    read_statements,
    swapped,
)
from blip.errors import DataError

CAPTION = {"image": "a.jpg", "caption": "A dog.", "image_id": "coco_1"}
PHOTO = {"image": "a.jpg", "caption": ["A dog.", "A cat."]}
NOCAPS = {"image": "val/a.jpg", "img_id": 7}
QUESTION = {
    "question_id": 3,
    "question": "What?",
    "image": "a.jpg",
    "dataset": "vqa",
    "answer": ["yes", "no", "yes", "a dog"],
}
STATEMENT = {"sentence": "Two dogs.", "label": "True", "images": ["a.png", "b.png"]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def to_file(document: Any) -> Path:
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(document))
        return path

    return to_file


def test_captions_number_their_images_by_appearance(write: Callable[[Any], Path]) -> None:
    rows = [CAPTION | {"image_id": image_id} for image_id in ("x", "b", "x", "a")]
    assert [row.number for row in read_caption_rows(write(rows))] == [0, 1, 0, 2]


def test_rows_are_streamed(write: Callable[[Any], Path]) -> None:
    """What comes first is given before the end of the file is found to be cut off."""
    path = write([CAPTION] * 3)
    path.write_text(path.read_text()[:-20])
    rows = read_caption_rows(path)
    assert isinstance(rows, Iterator)
    assert next(rows) == next(rows)
    with pytest.raises(DataError, match="record 3: is not JSON"):
        next(rows)


def test_retrieval_set_knows_whose_text_is_whose(write: Callable[[Any], Path]) -> None:
    found = read_retrieval_set(write([PHOTO, {"image": "b.jpg", "caption": ["A bird."]}]))
    assert found.images == ("a.jpg", "b.jpg")
    assert found.owner == (0, 0, 1)
    assert found.own_texts() == [[0, 1], [2]]


def test_answers_keep_their_order_and_weigh_their_share(write: Callable[[Any], Path]) -> None:
    genome = QUESTION | {"dataset": "vg", "answer": "street sign"}
    test = {name: value for name, value in QUESTION.items() if name != "answer"}
    people, one, none = read_questions(write([QUESTION, genome, test]))
    assert dict(zip(people.answers, people.weights, strict=True)) == {
        "yes": 0.5,
        "no": 0.25,
        "a dog": 0.25,
    }
    assert people.answers[0] == "yes"
    assert (one.answers, one.weights) == (("street sign",), (0.2,))
    assert (none.answers, none.weights) == ((), ())
    counts = [question.num_answers for question in (people, one, none)]
    assert counts == [len(QUESTION["answer"]), 1, 0]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The Left dog, right of it.", "the right dog, left of it"),
        ("bright leftover left, right", "bright leftover left, left"),
        ("No side.", "no side"),
    ],
)
def test_swapping_takes_whole_words_of_the_clean_sentence(sentence: str, expected: str) -> None:
    statement = Statement(sentence, ("a.png", "b.png"), True)
    other = swapped(statement)
    assert (other.sentence, other.images, other.label) == (expected, ("b.png", "a.png"), True)
    assert swapped(other).images == statement.images


def test_coco_ids() -> None:
    assert coco_image_id("val2014/COCO_val2014_000000391895.jpg") == 391895
    for name in ("photo.jpg", "COCO_val2014_.jpg", "a_1b.jpg"):
        with pytest.raises(DataError, match=f"'{name}' has no number"):
            coco_image_id(name)


@pytest.mark.parametrize(
    ("read", "good", "bad", "message"),
    [
        (read_caption_rows, CAPTION, {"image_id": 4}, "image_id is 4, it must be str"),
        (read_caption_rows, CAPTION, {"caption": None}, "caption is None"),
        (read_caption_rows, CAPTION, {"image": "../a.jpg"}, "image is '../a.jpg', .* plain path"),
        (read_retrieval_set, PHOTO, {"caption": []}, "texts, one at least"),
        (read_retrieval_set, PHOTO, {"caption": ["a", 1]}, "caption is "),
        (read_retrieval_set, PHOTO, {"image": "/a.jpg"}, "image is '/a.jpg'"),
        (read_nocaps, NOCAPS, {"img_id": "x1"}, "img_id is 'x1', it must be a number"),
        (read_nocaps, NOCAPS, {"img_id": True}, "img_id is True"),
        (read_questions, QUESTION, {"question_id": "3"}, "question_id is '3', it must be int"),
        (read_questions, QUESTION, {"question_id": True}, "question_id is True"),
        (read_questions, QUESTION, {"dataset": "gqa"}, "dataset is 'gqa', it must be vqa or vg"),
        (read_questions, QUESTION, {"answer": []}, r"answer is \[\], .* one at least"),
        (read_questions, QUESTION, {"answer": ["a", 2]}, "it must be texts"),
        (read_questions, QUESTION, {"answer": "a"}, "answer is 'a', it must be list"),
        (read_questions, QUESTION, {"dataset": "vg"}, "answer is .* it must be str"),
        (read_statements, STATEMENT, {"label": True}, "label is True"),
        (read_statements, STATEMENT, {"label": "true"}, "label is 'true'"),
        (read_statements, STATEMENT, {"images": ["a.png"]}, "two names"),
        (read_statements, STATEMENT, {"images": ["a.png", 3]}, "images is 3"),
    ],
)
def test_a_wrong_field_is_named(
    write: Callable[[Any], Path],
    read: Callable[[Path], Any],
    good: dict[str, Any],
    bad: dict[str, Any],
    message: str,
) -> None:
    path = write([good, good | bad])
    with pytest.raises(DataError, match=message) as error:
        list(read(path) if read is not read_retrieval_set else [read(path)])
    assert str(error.value).startswith(f"{path}, record 2")


def test_answer_lists(write: Callable[[Any], Path]) -> None:
    assert read_answer_list(write(["yes", "no"])) == ["yes", "no"]
    with pytest.raises(DataError, match="record 2: answer is ' '"):
        read_answer_list(write(["yes", " "]))
    with pytest.raises(DataError, match="holds no answer"):
        read_answer_list(write([]))


@pytest.mark.parametrize("read", [read_caption_rows, read_nocaps, read_questions, read_statements])
def test_files_that_are_none(
    tmp_path: Path, write: Callable[[Any], Path], read: Callable[[Path], Any]
) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(read(tmp_path / "absent.json"))
    with pytest.raises(DataError, match="is not JSON"):
        list(read(write({"rows": []})))
    with pytest.raises(DataError, match="record 1: "):
        list(read(write(["text"])))
