"""VQA v2: readers, a model against one question at a time, and what a server is handed."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from blip.benchmarks.vqa import (
    PER_QUESTION,
    answer_questions,
    evaluate_vqa,
    open_questions,
    read_asked,
    score_vqa,
)
from blip.data.tasks import read_photo
from blip.data.text import clean_question
from blip.data.transforms import evaluation_resize, normalise
from blip.errors import CheckpointError, DataError
from blip.evaluate.network import open_network
from blip.evaluate.vqa import ANSWER, encode_questions, rank_answers
from blip.files import read_json
from blip.models.generation import generate
from blip.models.matching import Texts
from blip.tracker import NullTracker

QUESTIONS = [
    (10, 7, "What color is the dog?"),
    (11, 9, "how many cats are there"),
    (12, 7, "Is there water?"),
    (13, 8, "is the bird on the table, left of the man?"),
    (14, 7, "how many?"),
    (15, 6, "what is red"),
    (16, 5, "is it a boat?"),
]
ANSWERS = ["yes", "no", "red", "blue", "two", "dog", "cat", "man", "water", "3", "the left dog"]
SPLIT = "val2014"


def official(rows: list[tuple[int, int, str]] = QUESTIONS) -> dict[str, Any]:
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text in rows]
    return {"info": {}, "data_subtype": SPLIT, "questions": questions, "license": {}}


def annotations() -> dict[str, Any]:
    people = [["yes"] * 10, ["two"] * 4 + ["2"] * 3 + ["3"] * 3, ["red"] * 2 + ["blue"] * 8]
    rows = [
        {
            "question_id": question,
            "image_id": image,
            "question_type": "how many" if "many" in text else "none of the above",
            "answer_type": "number" if "many" in text else "yes/no",
            "answers": [
                {"answer": answer, "answer_id": number}
                for number, answer in enumerate(people[question % 3], 1)
            ],
        }
        for question, image, text in QUESTIONS
    ]
    return {"info": {}, "annotations": rows[::-1], "data_subtype": SPLIT}


def write_files(folder: Path, draw_photos: Callable[..., None]) -> Path:
    (folder / "questions.json").write_text(json.dumps(official()))
    (folder / "annotations.json").write_text(json.dumps(annotations()))
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    names = {f"{SPLIT}/COCO_{SPLIT}_{image:012d}.jpg" for _, image, _ in QUESTIONS}
    draw_photos(folder, sorted(names))
    return folder


@pytest.fixture
def files(tmp_path: Path, draw_photos: Callable[..., None]) -> Path:
    return write_files(tmp_path, draw_photos)


@torch.inference_mode()
def one_by_one(network, folder: Path, question, candidates: list[str] | None) -> str:
    model, tokenizer, _ = network
    photo = evaluation_resize(read_photo(folder / question.image), model.image_size)
    tokens = model.encode_image(normalise(photo[None]))
    texts = Texts(*tokenizer.encode([clean_question(question.question, 50)], 35))
    memory = encode_questions(model, tokens, texts)
    if candidates is None:
        return tokenizer.decode(generate(model, memory, tokenizer.prompt(""), ANSWER)[0])
    answers = Texts(*tokenizer.encode(candidates, 512))
    return candidates[int(rank_answers(model, memory, answers, min(4, len(candidates))).best)]


@pytest.mark.parametrize("candidates", [None, ANSWERS])
def test_answers_are_those_of_each_question_alone(
    files: Path, config, random_model, candidates, monkeypatch
) -> None:
    """Photos are shared, questions of any length are read together, and nothing changes."""
    monkeypatch.setattr("blip.evaluate.vqa.RANKED", 4)
    network = open_network(random_model("vqa"), "vqa", 1)
    questions = open_questions(files / "questions.json").questions
    found = answer_questions(network, config, questions, files, candidates)
    assert found == {q.question_id: one_by_one(network, files, q, candidates) for q in questions}
    assert len(set(found.values())) > 1


def test_a_photo_is_encoded_once(files: Path, config, random_model, monkeypatch) -> None:
    network = open_network(random_model("vqa"), "vqa", 1)
    encode, seen = network.model.encode_image, []
    monkeypatch.setattr(
        network.model, "encode_image", lambda images: seen.append(len(images)) or encode(images)
    )
    questions = open_questions(files / "questions.json").questions
    answer_questions(network, config, questions, files, ANSWERS)
    assert seen == [3, 2]  # five photos of seven questions


def test_a_model_is_scored_as_its_submission_is(files: Path, config, random_model) -> None:
    for name in ("model", "again"):
        (files / name).mkdir()
    questions = open_questions(files / "questions.json", files / "annotations.json")
    checkpoint = random_model("vqa")
    evaluate_vqa(
        config, checkpoint, questions, files, files / "answers.json", files / "model", NullTracker()
    )
    rows = read_json(files / "model/submission.json")
    assert [row["question_id"] for row in rows] == [question for question, _, _ in QUESTIONS]
    assert all(set(row) == {"question_id", "answer"} and row["answer"] in ANSWERS for row in rows)
    submission = files / "model/submission.json"
    assert questions.asked is not None
    score_vqa(config, submission, questions.asked, files / "again", NullTracker())
    for name in ("metrics.json", "accuracy.json", "per_example.parquet"):
        assert (files / "model" / name).read_bytes() == (files / "again" / name).read_bytes()
    metrics = read_json(files / "model/metrics.json")["vqa"]
    summary = read_json(files / "model/accuracy.json")
    assert round(metrics["accuracy"]["value"], 2) == summary["overall"]
    assert round(metrics["accuracy_yes_no"]["value"], 2) == summary["perAnswerType"]["yes/no"]
    assert metrics["questions"] == 7
    table = pq.read_table(files / "model/per_example.parquet")
    assert table.schema.equals(PER_QUESTION)


def test_a_test_has_a_submission_and_no_score(
    files: Path, config, random_model, keeper, caplog
) -> None:
    (files / "out").mkdir()
    questions = open_questions(files / "questions.json")
    evaluate_vqa(config, random_model("vqa"), questions, files, None, files / "out", keeper)
    assert keeper.artifacts == ["submission.json", "per_example.parquet", "metrics.json"]
    assert read_json(files / "out/metrics.json") == {"vqa": {"questions": 7}}
    assert len(read_json(files / "out/submission.json")) == 7
    assert not (files / "out/accuracy.json").exists()
    assert "tells no answers of people: there is a submission and no score" in caplog.text
    assert pq.read_table(files / "out/per_example.parquet")["accuracy"].null_count == 7


def test_blips_own_files_say_the_same(files: Path) -> None:
    theirs = open_questions(files / "questions.json", files / "annotations.json")
    answers = {q.question_id: list(q.answers) for q in theirs.asked}
    rows = [
        {
            "question_id": question.question_id,
            "question": question.question,
            "image": question.image,
            "dataset": "vqa",
            "answer": answers[question.question_id],
        }
        for question in theirs.questions
    ]
    (files / "vqa_val.json").write_text(json.dumps(rows))
    ours = open_questions(files / "vqa_val.json")
    assert [q.image for q in ours.questions] == [q.image for q in theirs.questions]
    assert {q.question_id: list(q.answers) for q in ours.asked} == answers
    for row in rows:
        del row["answer"]
    (files / "vqa_test.json").write_text(json.dumps(rows))
    assert open_questions(files / "vqa_test.json").asked is None
    (files / "vg_qa.json").write_text(json.dumps([rows[0] | {"dataset": "vg"}]))
    with pytest.raises(DataError, match="question 10 is of 'vg', which only trains"):
        open_questions(files / "vg_qa.json")


@pytest.mark.parametrize(
    ("subset", "image"),
    [
        ("val2014", "val2014/COCO_val2014_000000000007.jpg"),
        ("test2015", "test2015/COCO_test2015_000000000007.jpg"),
        ("test-dev2015", "test2015/COCO_test2015_000000000007.jpg"),
    ],
)
def test_photos_are_named_as_coco_names_them(tmp_path: Path, subset: str, image: str) -> None:
    (tmp_path / "q.json").write_text(json.dumps(official() | {"data_subtype": subset}))
    assert open_questions(tmp_path / "q.json").questions[0].image == image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, a: q.pop("data_subtype"), "questions.json: data_subtype is None"),
        (lambda q, a: q["questions"][1].pop("image_id"), "questions, record 2: image_id is None"),
        (
            lambda q, a: q["questions"][1].update(question=" ?!"[2:]),
            "question 11: question is '!', it must be a question",
        ),
        (lambda q, a: q["questions"][1].update(question_id=10), "10 stands more than once"),
        (lambda q, a: q["questions"].clear(), "holds no question"),
        (lambda q, a: a["annotations"].pop(), "annotations.json: 10 has no prediction"),
        (lambda q, a: a["annotations"][0].update(question_id=99), "99 is not in .*questions.json"),
        (
            lambda q, a: a["annotations"][2]["answers"].clear(),
            "record 3: answers are 0 of 0 people",
        ),
        (lambda q, a: a["annotations"][2]["answers"][3].update(answer_id=1), "10 of 9 people"),
        (
            lambda q, a: a["annotations"][2]["answers"][3].update(answer=4),
            "answer is 4, it must be",
        ),
        (lambda q, a: a["annotations"][2].pop("answer_type"), "record 3: answer_type is None"),
    ],
)
def test_what_is_wrong_is_named(
    files: Path, change: Callable[[Any, Any], Any], message: str
) -> None:
    questions, told = official(), annotations()
    change(questions, told)
    (files / "questions.json").write_text(json.dumps(questions))
    (files / "annotations.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=message):
        open_questions(files / "questions.json", files / "annotations.json")


def test_missing_photos_are_named_before_anything_is_read(files: Path, config) -> None:
    (files / f"{SPLIT}/COCO_{SPLIT}_000000000005.jpg").unlink()
    questions = open_questions(files / "questions.json")
    with pytest.raises(
        DataError, match=r"photos are missing: .*_000000000005\.jpg: name the folder"
    ):
        evaluate_vqa(config, files / "none", questions, files, None, files, NullTracker())


def test_a_photo_that_is_cut_short_is_named(files: Path, config, random_model) -> None:
    photo = files / f"{SPLIT}/COCO_{SPLIT}_000000000005.jpg"
    photo.write_bytes(photo.read_bytes()[:400])
    network = open_network(random_model("vqa"), "vqa", 1)
    questions = open_questions(files / "questions.json").questions
    with pytest.raises(DataError, match=r"_000000000005\.jpg: "):
        answer_questions(network, config, questions, files, None)


def test_scores_that_are_no_numbers(files: Path, config, random_model) -> None:
    network = open_network(random_model("vqa"), "vqa", 1)
    network.model.language_head.bias.data[5] = float("nan")
    questions = open_questions(files / "questions.json").questions
    with pytest.raises(CheckpointError, match="scores of answers are not numbers"):
        answer_questions(network, config, questions, files, ANSWERS)


def test_real_predictions_are_scored_from_their_files(shared: Path, config, tmp_path: Path) -> None:
    folder = shared / "data/vqa"
    summaries = read_json(folder / "official_scores.json")
    (told,) = folder.glob("*annot*_valid.json.gz")
    (tmp_path / "annotations.json").write_bytes(gzip.decompress(told.read_bytes()))
    asked = read_asked(tmp_path / "annotations.json")
    for results in sorted(folder.glob("valid_*_results.json.gz")):
        name = results.name.removesuffix("_results.json.gz")
        (tmp_path / f"{name}.json").write_bytes(gzip.decompress(results.read_bytes()))
        out = tmp_path / name
        out.mkdir()
        predictions = tmp_path / f"{name}.json"
        score_vqa(config, predictions, asked, out, NullTracker())
        assert read_json(out / "accuracy.json") == summaries[name]["accuracy"]
        assert len(asked) == summaries[name]["n"]
