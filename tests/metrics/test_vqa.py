"""VQA accuracy against the official evaluator's, and what must hold of any text."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import DataError
from blip.metrics.vqa import (
    ARTICLES,
    CONTRACTIONS,
    NUMBERS,
    PLACES,
    PUNCTUATION,
    Asked,
    accuracy,
    normalise,
    score,
    strip_punctuation,
    summarise,
)

PIECES = [*PUNCTUATION, *"0123", ".", " ", "'", "\n", "a", "The", "two", "dont", "Im", "word", "É"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def percent(accuracy: float) -> float:
    """Round as the evaluator rounds the accuracy of a question."""
    return round(100 * accuracy, PLACES)


def read(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


def find_results(folder: Path) -> list[str]:
    names = [p.name.removesuffix("_results.json.gz") for p in folder.glob("*_results.json.gz")]
    assert names
    return sorted(names)


def read_annotations(folder: Path, name: str) -> list[Asked]:
    """Read the annotations of the split that a result set names first."""
    (path,) = folder.glob(f"*annot*_{name.split('_')[0]}.json.gz")
    return [
        Asked(
            row["question_id"],
            tuple(answer["answer"] for answer in row["answers"]),
            row["question_type"],
            row["answer_type"],
        )
        for row in read(path)["annotations"]
    ]


def test_every_question_of_every_set_scores_as_officially(shared: Path) -> None:
    folder = shared / "data/vqa"
    official = json.loads((folder / "official_scores.json").read_text())
    for name in find_results(folder):
        asked = read_annotations(folder, name)
        rows = read(folder / f"{name}_results.json.gz")
        pairs = [(row["question_id"], row["answer"]) for row in rows]
        accuracies = score(pairs, asked, name, "the annotations")
        expected = read(folder / f"{name}_official_perquestion.json.gz")
        ours = {str(q.question_id): percent(a) for q, a in zip(asked, accuracies, strict=True)}
        assert ours == expected  # measured: no difference in any question
        assert summarise(accuracies, asked) == official[name]["accuracy"]


def test_normalisation_and_accuracy_of_the_reference(shared: Path) -> None:
    golden = json.loads((shared / "golden/vqa_accuracy.json").read_text())
    for case in golden["normalise"]:
        assert strip_punctuation(case["in"]) == case["punct"]
        assert normalise(case["in"]) == case["out"]
    for case in golden["accuracy_percent"]:
        expected = case["official_GT-Vision-Lab"]
        assert percent(accuracy(case["pred"], case["answers"])) == expected, case


@pytest.mark.parametrize(
    ("prediction", "others", "expected"),
    [
        ("The dog!", {"dog": 3, "cat": 7}, 90.0),  # three of the nine others for 7, two for 3
        ("DOG", {"dog": 10}, 0.0),  # all say the same, so nothing is normalised
        ("dog\n", {"dog": 10}, 100.0),
        ("2", {"two": 4, "3": 6}, 100.0),
        ("dont", {"don't": 9, "do not": 1}, 100.0),
        ("Im here", {"im here": 9, "I'm here": 1}, 100.0),  # capitals never match
        ("", {"the": 5, "cat": 5}, 100.0),  # an article alone is nothing
    ],
)
def test_quirks(prediction: str, others: dict[str, int], expected: float) -> None:
    answers = [answer for answer, count in others.items() for _ in range(count)]
    assert percent(accuracy(prediction, answers)) == expected


def test_only_so_many_periods_are_stripped_as_the_reference_passes_a_flag_for_a_count() -> None:
    assert strip_punctuation("." * 40) == "." * 8


@given(TEXTS)
def test_normalised_text_is_plain(text: str) -> None:
    words = normalise(text).split()
    assert " ".join(words) == normalise(text)
    assert not ARTICLES & set(words)
    assert not NUMBERS.keys() & set(words)
    assert not CONTRACTIONS.keys() & set(words)
    assert not set(PUNCTUATION) & set(normalise(text))
    assert normalise(text) == normalise(text.upper()) or "É" in text


@given(TEXTS, TEXTS)
def test_a_stripped_mark_leaves_nothing_or_a_space(left: str, right: str) -> None:
    """Each mark by itself, as the text around it says and not as what is left of it."""
    text = f"{left}{right}"
    assert [c for c in strip_punctuation(text) if c not in ". "] == [
        c for c in text if c not in PUNCTUATION and c not in ". "
    ]


@given(st.lists(TEXTS, min_size=1, max_size=10), TEXTS, st.randoms())
def test_accuracy_is_a_share_that_depends_on_no_order(answers: list[str], said: str, rng) -> None:
    found = accuracy(said, answers)
    assert 0 <= found <= 1
    rng.shuffle(answers)
    assert accuracy(said, answers) == pytest.approx(found, abs=1e-15)
    assert accuracy(said, [*answers, said, said, said, said]) >= found - 1e-15


def test_the_wrong_predictions_are_named() -> None:
    asked = [Asked(number, ("yes",)) for number in range(9)]
    right = [(number, "no") for number in range(9)]
    assert score(right, asked, "p", "q") == [0.0] * 9
    with pytest.raises(DataError, match=r"p: 0, 1, 2, 3, 4 ... \(8 in all\) has no prediction"):
        score(right[8:], asked, "p", "q")
    with pytest.raises(DataError, match="p: 9 is not in q"):
        score([*right, (9, "no")], asked, "p", "q")
    with pytest.raises(DataError, match="p: 4 stands more than once"):
        score([*right, (4, "yes")], asked, "p", "q")
