"""Ads: a model against one pair at a time, scikit-learn's area, and files that break a rule."""

import base64
import json
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from blip.benchmarks.ads import EncodedImages, evaluate_ads, read_ads, score_ads
from blip.errors import DataError
from blip.files import read_json
from blip.tracker import NullTracker
from tests.paper_benchmarks.test_sugarcrepe import score_one

PAIRS = [  # image, query, label
    ("12", "red dog bird", 1),
    ("7", "two blue boats", 0),
    ("12", "how many cats", 0),
    ("9", "red dog bird", 1),
    ("10", "a man on the left", 0),
]


def lines(pairs: list[tuple[str, str, object]]) -> str:
    rows = [
        [image, "1", query, "A title", "It's 5\" wide", "a.com", "A", "B", label, "[IMG_CATEID_1]"]
        for image, query, label in pairs
    ]
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def write_files(folder: Path, draw_photos) -> Path:
    names = sorted({image for image, *_ in PAIRS}, reverse=True)
    draw_photos(folder / "photos", [f"{name}.png" for name in names])
    encoded = {n: base64.b64encode((folder / f"photos/{n}.png").read_bytes()) for n in names}
    content = [f"{name}\t{code.decode()}\n" for name, code in encoded.items()]
    (folder / "images.tsv").write_text("".join(["3\tAAAA\n", *content, "7\tAAAA\n"]))
    (folder / "test.tsv").write_text(lines(PAIRS))
    return folder


@pytest.fixture
def files(tmp_path: Path, draw_photos) -> Path:
    return write_files(tmp_path, draw_photos)


def test_a_model_is_measured_as_pair_by_pair(config, random_model, files: Path, tmp_path) -> None:
    model, out = random_model("matching"), tmp_path / "out"
    arguments = files / "test.tsv", files / "images.tsv", 8, False
    evaluate_ads(config, model, *arguments, out, NullTracker())
    rows = pq.read_table(out / "per_example.parquet").to_pylist()
    assert sorted(row["row"] for row in rows) == [1, 2, 3, 4, 5]
    scores: list[tuple[float, float]] = []
    for row in rows:
        image, query, label = PAIRS[row["row"] - 1]
        assert (row["image"], row["relevant"]) == (image, bool(label))
        scores.append(score_one(model, files / f"photos/{image}.png", query, config))
        # Measured 1e-5, of weights that are larger than those of trained models.
        assert (row["itm"], row["itc"]) == pytest.approx(scores[-1], abs=1e-4)
    metrics = read_json(out / "metrics.json")["ads"]
    labels = [row["relevant"] for row in rows]
    for name, values in zip(("itm", "itc"), zip(*scores, strict=True), strict=True):
        expected = 100 * roc_auc_score(labels, values)
        assert metrics[f"{name}_roc_auc"]["value"] == pytest.approx(expected)
    assert (metrics["pairs"], metrics["relevant"], metrics["skipped"]) == (5, 2, 0)


def test_scores_of_others(config, files: Path, tmp_path: Path) -> None:
    values = [0.5, 0.5, 0.25, 0.75, 0.5]
    rows = [{"row": number, "score": value} for number, value in enumerate(values, 1)]
    path, out = tmp_path / "scores.json", tmp_path / "out"
    path.write_text(json.dumps(rows))
    score_ads(config, path, files / "test.tsv", 8, out, NullTracker())
    expected = 100 * roc_auc_score([label for *_, label in PAIRS], values)
    found = read_json(out / "metrics.json")["ads"]["predicted_roc_auc"]["value"]
    assert found == pytest.approx(expected, abs=1e-10)
    for wrong, message in (
        (rows[:-1], "5 has no prediction"),
        ([*rows, {"row": 6, "score": 0}], "6 is not in"),
        ([{"row": 1, "score": float("nan")}], "record 1: score is nan"),
        ([{"row": 1, "score": True}], "record 1: score is True"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=message):
            score_ads(config, path, files / "test.tsv", 8, out, NullTracker())


def test_a_missing_photo_is_an_error_or_counted(
    config, random_model, files: Path, tmp_path
) -> None:
    (files / "test.tsv").write_text(lines([*PAIRS, ("99", "a dog", 1)]))
    arguments = files / "test.tsv", files / "images.tsv", 8
    with pytest.raises(DataError, match=r"lacks the photos of lines 6 .* by --skip-missing"):
        evaluate_ads(config, random_model("matching"), *arguments, False, tmp_path, NullTracker())
    out = tmp_path / "out"
    evaluate_ads(config, random_model("matching"), *arguments, True, out, NullTracker())
    metrics = read_json(out / "metrics.json")["ads"]
    assert (metrics["pairs"], metrics["skipped"]) == (5, 1)
    (files / "test.tsv").write_text(lines([("99", "a dog", 1), ("98", "a cat", 0)]))
    with pytest.raises(DataError, match="lacks the photos of lines 1, 2"):
        evaluate_ads(config, random_model("matching"), *arguments, True, out, NullTracker())


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("7", "a dog", 2), "line 6: label is '2', it must be 0 or 1 .*--label-column"),
        (("7", " ", 1), "line 6: query is ' '"),
        (("7", "a\tdog", 1), "line 6: line is .*, it must be of 10 fields"),
    ],
)
def test_a_pair_that_breaks_a_rule(files: Path, pair, message: str) -> None:
    (files / "test.tsv").write_text(lines([*PAIRS, pair]))
    with pytest.raises(DataError, match=message):
        read_ads(files / "test.tsv")


def test_a_curve_needs_both_labels(files: Path) -> None:
    (files / "test.tsv").write_text(lines(PAIRS[:1]))
    with pytest.raises(DataError, match="a curve needs both"):
        read_ads(files / "test.tsv")


def test_photos_in_base64(files: Path) -> None:
    images = EncodedImages(files / "images.tsv", ["7", "3", "99"])
    assert images.read("7").shape == (3, 40, 56)  # of an id that stands twice, the first
    assert images.names == ["3", "7"]
    assert images.pixels(range(1, 2), 8).shape == (1, 3, 8, 8)
    png = (files / "photos/7.png").read_bytes()
    assert images.digests(range(1, 2)) == [sha256(png).hexdigest()]  # as the photo itself
    with pytest.raises(DataError, match=r"images\.tsv: photo 3: .* fetch the file again"):
        images.read("3")
    (files / "images.tsv").write_text("7\t####\n")
    with pytest.raises(DataError, match=r"images\.tsv: photo 7: "):
        EncodedImages(files / "images.tsv", ["7"]).read("7")
    (files / "images.tsv").write_text("7\n")
    with pytest.raises(DataError, match=r"images\.tsv, line 1: line is"):
        EncodedImages(files / "images.tsv", ["7"])
