"""SugarCrepe: a model against one pair at a time, scores of others, the official files, bad ones."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from blip.benchmarks.sugarcrepe import evaluate_sugarcrepe, read_contrasts, score_sugarcrepe
from blip.data.tasks import read_photo
from blip.data.text import clean_caption
from blip.data.transforms import evaluation_transform
from blip.errors import DataError
from blip.evaluate.network import open_network
from blip.files import read_json
from blip.tracker import NullTracker

PAIRS = {
    "swap_obj": [("b.png", "a dog on a table", "a table on a dog"), ("a.png", "Red, blue!", "red")],
    "add_att": [("b.png", "how many cats", "how many cats are there"), ("c.png", "two", "three")],
}


def write_files(folder: Path, draw_photos) -> Path:
    (folder / "data").mkdir()
    names = ("filename", "caption", "negative_caption")
    for category, pairs in PAIRS.items():
        rows = {str(n): dict(zip(names, pair, strict=True)) for n, pair in enumerate(pairs)}
        (folder / f"data/{category}.json").write_text(json.dumps(rows))
    draw_photos(folder / "photos", ["a.png", "b.png", "c.png"])
    return folder


@pytest.fixture
def files(tmp_path: Path, draw_photos) -> Path:
    return write_files(tmp_path, draw_photos)


@torch.inference_mode()
def score_one(model: Path, photo: Path, caption: str, config) -> tuple[float, float]:
    """Give log-odds and cosine of one pair."""
    network, tokenizer, _ = open_network(model, "matching", 1)
    limits = config.finetune.retrieval
    text = tokenizer.encode([clean_caption(caption, limits.max_words)], limits.max_tokens)
    pixels = evaluation_transform(read_photo(photo), network.image_size)
    tokens = network.encode_image(pixels[None])
    match = network.match(*text, network.project_images(tokens))[0]
    cosine = network.embed_image(tokens) @ network.embed_text(network.encode_text(*text)).T
    return float(match[1] - match[0]), float(cosine)


def test_a_model_is_measured_as_pair_by_pair(config, random_model, files: Path, tmp_path) -> None:
    model, out = random_model("matching"), tmp_path / "out"
    evaluate_sugarcrepe(config, model, files / "data", files / "photos", out, NullTracker())
    rows = pq.read_table(out / "per_example.parquet").to_pylist()
    assert len(rows) == 4
    right: dict[str, list[bool]] = {}
    for row in rows:
        image, *captions = PAIRS[row["category"]][int(row["id"])]
        assert row["image"] == image
        scored = [score_one(model, files / "photos" / image, text, config) for text in captions]
        for kind, (caption, negative) in zip(
            ("itm", "itc"), zip(*scored, strict=True), strict=True
        ):
            # Measured 1e-5, of weights that are larger than those of trained models.
            assert row[f"{kind}_positive"] == pytest.approx(caption, abs=1e-4)
            assert row[f"{kind}_negative"] == pytest.approx(negative, abs=1e-4)
            right.setdefault(f"{kind}_{row['category']}", []).append(caption > negative)
    metrics = read_json(out / "metrics.json")["sugarcrepe"]
    for name, values in right.items():
        assert metrics[name]["value"] == 100 * np.mean(values)
    means = [metrics[f"itm_{category}"]["value"] for category in PAIRS]
    assert metrics["itm_mean"]["value"] == pytest.approx(np.mean(means))


def test_scores_of_others(config, files: Path, tmp_path: Path) -> None:
    rows = [
        {"category": "swap_obj", "id": "0", "positive": 1.0, "negative": 0.5},
        {"category": "swap_obj", "id": "1", "positive": 0.5, "negative": 0.5},  # a tie is wrong
        {"category": "add_att", "id": "0", "positive": 2, "negative": -1},
        {"category": "add_att", "id": "1", "positive": 3, "negative": 1},
    ]
    path, out = tmp_path / "scores.json", tmp_path / "out"
    path.write_text(json.dumps(rows))
    score_sugarcrepe(config, path, files / "data", out, NullTracker())
    metrics = read_json(out / "metrics.json")["sugarcrepe"]
    assert metrics["predicted_swap_obj"]["value"] == 50
    assert metrics["predicted_add_att"]["value"] == 100
    for wrong, message in (
        (rows[1:], r"\('swap_obj', '0'\) has no prediction"),
        ([*rows[1:], {**rows[0], "positive": float("nan")}], "positive is nan, .* a finite number"),
        ([*rows[1:], {**rows[0], "positive": 10**400}], "positive is 10.*, .* a finite number"),
        ([*rows[1:], {**rows[0], "positive": None}], "positive is None, .* a finite number"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=message):
            score_sugarcrepe(config, path, files / "data", out, NullTracker())


def test_a_missing_photo_is_named_before_the_work(config, files: Path, tmp_path: Path) -> None:
    (files / "photos/b.png").unlink()
    arguments = tmp_path / "no model", files / "data", files / "photos", tmp_path, NullTracker()
    with pytest.raises(DataError, match=r"photos are missing: .*b\.png"):
        evaluate_sugarcrepe(config, *arguments)


def test_real_photos(config, random_model, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/coco_photos"
    pairs = folder / "sugarcrepe_pairs.json"
    arguments = pairs, folder / "images", tmp_path, NullTracker()
    evaluate_sugarcrepe(config, random_model("matching"), *arguments)
    metrics = read_json(tmp_path / "metrics.json")["sugarcrepe"]
    assert metrics["pairs"] == len(json.loads(pairs.read_text()))


def test_the_official_files(shared: Path) -> None:
    contrasts = read_contrasts(shared / "data/sugarcrepe")
    counts = {"replace_obj": 1652, "add_att": 692, "swap_obj": 245}
    for category, count in counts.items():
        assert sum(contrast.category == category for contrast in contrasts) == count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": "../a.png"}, r"record '0': image is '\.\./a\.png'"),
        ({"caption": ""}, "record '0': caption is ''"),
        ({"negative_caption": 3}, "record '0': negative_caption is 3"),
    ],
)
def test_a_file_that_breaks_a_rule(files: Path, change: dict[str, object], message: str) -> None:
    path = files / "data/swap_obj.json"
    rows = json.loads(path.read_text())
    rows["0"] |= change
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=rf"swap_obj\.json, {message}"):
        read_contrasts(files / "data")
