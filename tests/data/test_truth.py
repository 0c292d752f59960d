"""The file of what is known about noisy texts."""

from pathlib import Path

import pytest

from blip.data.scenes import Dice, draw_scene
from blip.data.truth import Truth, read_truth, write_truth
from blip.errors import DataError


def test_round_trip(tmp_path: Path) -> None:
    truths = [
        Truth("a.png", "a red ring", "clean", draw_scene(Dice(1))),
        Truth("photo é.jpg", "un café\u2028noir", "mismatch"),
    ]
    write_truth(tmp_path / "truth.jsonl", truths)
    assert read_truth(tmp_path / "truth.jsonl") == truths


@pytest.mark.parametrize("line", ["{", "[]", '{"source": "a", "text": "b"}', '{"source": 1}'])
def test_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "truth.jsonl"
    write_truth(file, [Truth("a", "b", "clean")])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"truth\.jsonl, line 2"):
        read_truth(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_truth(tmp_path / "none.jsonl")
