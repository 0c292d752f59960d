"""NLVR2 against the official script's scores."""

import json
from pathlib import Path

import pytest

from blip.errors import DataError
from blip.metrics.nlvr import group_of, judge


def test_every_set_scores_as_officially(shared: Path) -> None:
    folder = shared / "data/nlvr2"
    official = json.loads((folder / "official_scores.json").read_text())
    files = sorted(folder.glob("predictions/*.csv"))
    assert files
    for path in files:
        rows = map(json.loads, (folder / f"{path.stem.split('_')[0]}.json").open())
        labels = {row["identifier"]: row["label"] == "True" for row in rows}
        predictions = [tuple(line.strip().split(",")) for line in path.open()]
        right = judge(predictions, list(labels), list(labels.values()), path, "dev")
        judged = list(zip(map(group_of, labels), right, strict=True))
        wrong = {sentence for sentence, holds in judged if not holds}
        expected = official[path.stem]  # measured: no difference
        assert sum(right) / len(right) == expected["accuracy"]
        assert 1 - len(wrong) / len(dict(judged)) == pytest.approx(
            expected["consistency"], abs=1e-12
        )
        assert len(right) == expected["n"]


def test_a_sentence_is_about_several_pairs() -> None:
    assert group_of("dev-850-0-1") == group_of("dev-850-3-1") != group_of("dev-850-0-0")
    assert group_of("dev-850-0-1") != group_of("dev-85-0-1")


def test_case_does_not_matter_and_what_is_neither_is_wrong() -> None:
    identifiers = ["a", "b", "c", "d"]
    pairs = list(zip(identifiers, ["TRUE", "false", "yes", " True"], strict=True))
    assert (
        judge(pairs, identifiers, [True, False, True, True], "p", "q") == [True] * 2 + [False] * 2
    )


def test_missing_predictions_are_named() -> None:
    with pytest.raises(DataError, match="p: b, c has no prediction: give one prediction for each"):
        judge([("a", "True")], ["a", "b", "c"], [True] * 3, "p", "q")
