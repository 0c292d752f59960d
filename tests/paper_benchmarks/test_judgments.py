"""Flickr8k's judgments: a model against one pair at a time, SciPy's correlations, bad files."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from blip.benchmarks.judgments import (
    evaluate_judgments,
    read_captions,
    read_judgments,
    score_judgments,
)
from blip.errors import DataError
from blip.files import read_json
from blip.tracker import NullTracker
from tests.paper_benchmarks.test_sugarcrepe import score_one

CAPTIONS = {
    "a.jpg#0": "A dog is on the table .",
    "b.jpg#0": "Two cats .",
    "b.jpg#1": "A dog is on the table .",  # reads like one of a.jpg
    "c.jpg#0": "Red and blue boats .",
    "d.jpg#0": "No man is there .",
}
EXPERT = [
    ("a.jpg", "a.jpg#0", 4, 4, 4),
    ("a.jpg", "b.jpg#0", 1, 2, 1),
    ("a.jpg", "b.jpg#1", 4, 4, 3),
    ("b.jpg", "c.jpg#0", 1, 1, 1),
    ("b.jpg", "d.jpg#0", 3, 2, 2),
    ("c.jpg", "a.jpg#0", 2, 1, 3),
    ("c.jpg", "b.jpg#0", 1, 1, 2),
]
CROWD = [
    ("a.jpg", "a.jpg#0", "1", 3, 0),
    ("a.jpg", "b.jpg#0", "0.333333333333333", 1, 2),
    ("b.jpg", "c.jpg#0", "0", 0, 3),
    ("c.jpg", "d.jpg#0", "0.25", 1, 3),
]


def write(path: Path, rows: list[tuple[object, ...]]) -> Path:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def write_files(folder: Path, draw_photos) -> Path:
    write(folder / "token.txt", list(CAPTIONS.items()))
    write(folder / "expert.txt", EXPERT)
    write(folder / "crowd.txt", CROWD)
    draw_photos(folder / "photos", ["a.jpg", "b.jpg", "c.jpg"])
    return folder


@pytest.fixture
def files(tmp_path: Path, draw_photos) -> Path:
    return write_files(tmp_path, draw_photos)


def expected(scores: list[float], ratings: list[float]) -> dict[str, float]:
    return {
        "tau_b": 100 * stats.kendalltau(scores, ratings, variant="b").statistic,
        "tau_c": 100 * stats.kendalltau(scores, ratings, variant="c").statistic,
        "spearman": 100 * stats.spearmanr(scores, ratings).statistic,
    }


@pytest.mark.parametrize("judges", ["expert", "crowd"])
def test_a_model_is_measured_as_pair_by_pair(
    config, random_model, files: Path, tmp_path: Path, judges
) -> None:
    model, out = random_model("matching"), tmp_path / "out"
    arguments = files / f"{judges}.txt", judges, files / "token.txt", files / "photos"
    evaluate_judgments(config, model, *arguments, out, NullTracker())
    kept = CROWD if judges == "crowd" else [EXPERT[1], *EXPERT[3:]]
    rows = pq.read_table(out / "per_example.parquet").to_pylist()
    assert [(row["image"], row["caption_id"]) for row in rows] == [row[:2] for row in kept]
    scores: dict[str, list[float]] = {"itm": [], "itc": []}
    ratings: list[float] = []
    for (image, caption_id, *votes), row in zip(kept, rows, strict=True):
        mine = [votes[1] / (votes[1] + votes[2])] if judges == "crowd" else votes
        assert row["ratings"] == pytest.approx(mine)
        ratings += mine
        each = score_one(model, files / "photos" / image, CAPTIONS[caption_id], config)
        for name, score in zip(scores, each, strict=True):
            assert row[name] == pytest.approx(score, abs=1e-4)  # measured 1e-5, of 1.7
            scores[name] += [score] * len(mine)
    metrics = read_json(out / "metrics.json")[f"judgments_{judges}"]
    assert (metrics["pairs"], metrics["ratings"]) == (len(kept), len(ratings))
    for name, values in scores.items():
        for kind, value in expected(values, ratings).items():
            assert metrics[f"{name}_{kind}"]["value"] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("judges", ["expert", "crowd"])
def test_the_real_ratings_give_the_correlations_of_scipy(
    config, shared: Path, tmp_path: Path, judges
) -> None:
    folder = shared / "data/flickr8k"
    name = "expert" if judges == "expert" else "crowdflower"
    data, captions = folder / f"{name}_judgments.tsv", folder / "captions.token.txt"
    judgments = read_judgments(data, judges, captions)
    assert sum(judgment.own for judgment in judgments) == (46 if judges == "expert" else 226)
    generator = np.random.default_rng(0)
    rows = [
        {
            "image": judgment.image,
            "caption_id": judgment.caption_id,
            "score": float(np.mean(judgment.ratings) + generator.integers(0, 40) / 10),
        }
        for judgment in judgments
    ]
    (tmp_path / "scores.json").write_text(json.dumps(rows))
    arguments = tmp_path / "scores.json", data, judges, captions, tmp_path / "out", NullTracker()
    score_judgments(config, *arguments)
    pairs = [
        (row["score"], rating)
        for row, judgment in zip(rows, judgments, strict=True)
        if judges == "crowd" or not judgment.own
        for rating in judgment.ratings
    ]
    metrics = read_json(tmp_path / "out/metrics.json")[f"judgments_{judges}"]
    assert metrics["ratings"] == len(pairs)
    for kind, value in expected(*zip(*pairs, strict=True)).items():
        assert metrics[f"predicted_{kind}"]["value"] == pytest.approx(value, abs=1e-10)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a.jpg", "b.jpg#0", 1, 2), "line 8: line is .*, it must be of 5 fields"),
        (("a.jpg", "b.jpg#0", 1, 2, 5), r"line 8: experts is \['1', '2', '5'\]"),
        (("a.jpg", "x.jpg#0", 1, 2, 3), "line 8: caption_id is 'x.jpg#0', .*--annotations"),
        (("../a.jpg", "b.jpg#0", 1, 2, 3), "line 8: image is"),
        (("a.jpg", "b.jpg#0", 1, 2, 3), r"\('a.jpg', 'b.jpg#0'\) stands more than once"),
    ],
)
def test_a_rating_that_breaks_a_rule(files: Path, row: tuple[object, ...], message: str) -> None:
    path = write(files / "expert.txt", [*EXPERT, row])
    with pytest.raises(DataError, match=message):
        read_judgments(path, "expert", files / "token.txt")


def test_nothing_that_counts(config, files: Path, tmp_path: Path) -> None:
    path = write(files / "expert.txt", EXPERT[:1])
    score = {"image": "a.jpg", "caption_id": "a.jpg#0", "score": 1}
    (tmp_path / "scores.json").write_text(json.dumps([score]))
    arguments = tmp_path / "scores.json", path, "expert", files / "token.txt", tmp_path
    with pytest.raises(DataError, match="do not count among experts"):
        score_judgments(config, *arguments, NullTracker())


def test_votes_that_break_a_rule(files: Path) -> None:
    for votes in (("0.5", 1, 2), ("x", 1, 2), ("0", 0, 0)):
        path = write(files / "crowd.txt", [("a.jpg", "b.jpg#0", *votes)])
        with pytest.raises(DataError, match="line 1: votes is"):
            read_judgments(path, "crowd", files / "token.txt")
    with pytest.raises(DataError, match=r"token\.txt, line 1: line is 'a caption'"):
        read_captions(write(files / "token.txt", [("a caption",)]))
