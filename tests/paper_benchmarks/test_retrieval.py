"""Score matrices of others, on the official files."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from blip.benchmarks.retrieval import score_retrieval
from blip.data.annotations import read_retrieval_set
from blip.errors import DataError
from blip.evaluate.evaluation_set import open_evaluation_set
from blip.files import read_json, write_json
from blip.metrics.ranking import best_ranks, ranks
from blip.tracker import NullTracker
from tests.metrics.official_recalls import summary

ROWS = [
    {"image": "a.jpg", "caption": ["one", "two"]},
    {"image": "b.jpg", "caption": ["three"]},
    {"image": "c.jpg", "caption": ["four", "five", "six"]},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_json(tmp_path / "test.json", ROWS)
    return tmp_path / "test.json"


def test_matrices_of_others_are_scored(config, data: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    i2t, t2i = generator.integers(0, 5, (3, 6)) * 1.0, generator.integers(0, 5, (6, 3)) * 1.0
    np.savez(tmp_path / "scores.npz", i2t=i2t, t2i=t2i)
    out = tmp_path / "out"
    score_retrieval(config, tmp_path / "scores.npz", data, out, NullTracker())
    metrics = read_json(out / "metrics.json")["retrieval"]
    own, owner = [[0, 1], [2], [3, 4, 5]], [0, 0, 1, 2, 2, 2]
    for theirs, value in summary(best_ranks(i2t, own), ranks(t2i, owner), "img").items():
        ours = theirs.replace("txt_", "tr_").replace("img_", "ir_").replace("_r_mean", "_mean")
        assert metrics[ours]["value"] == pytest.approx(value)
    assert (metrics["images"], metrics["texts"]) == (3, 6)
    table = pq.read_table(out / "per_example.parquet")
    assert table["key"].to_pylist() == ["a.jpg", "b.jpg", "c.jpg"]
    assert [len(found) for found in table["ir_ranks"].to_pylist()] == [2, 1, 3]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"i2t": np.zeros((3, 6))}, "holds no matrices i2t and t2i"),
        ({"i2t": np.zeros((3, 6)), "t2i": np.zeros((3, 6))}, r"t2i is \(3, 6\), .* be \(6, 3\)"),
        ({"i2t": np.full((3, 6), "1"), "t2i": np.zeros((6, 3))}, "i2t holds <U1, it must hold num"),
        ({"i2t": np.full((3, 6), np.nan), "t2i": np.zeros((6, 3))}, "row 0: .* not a number"),
    ],
)
def test_bad_matrices(config, data: Path, tmp_path: Path, arrays, message: str) -> None:
    np.savez(tmp_path / "scores.npz", **arrays)
    with pytest.raises(DataError, match=rf"scores\.npz: .*{message}"):
        score_retrieval(config, tmp_path / "scores.npz", data, tmp_path / "out", NullTracker())


def test_the_official_files(shared: Path) -> None:
    for split in ("val", "test"):
        path = shared / f"data/coco_karpathy/coco_karpathy_{split}.json"
        found = read_retrieval_set(path)
        assert (len(found.images), len(found.texts)) == (5000, 25010)
        images = open_evaluation_set(path, Path("photos"))
        assert images.keys == found.images
