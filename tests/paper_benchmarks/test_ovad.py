"""OVAD: a model against one box at a time, scikit-learn's precision, boxes out of the photo."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from blip.benchmarks.ovad import Attribute, evaluate_ovad, read_boxes, score_ovad
from blip.data.transforms import normalise
from blip.errors import DataError
from blip.evaluate.network import open_network
from blip.files import read_json
from blip.tracker import NullTracker

ATTRIBUTES = [
    ("cleanliness:clean/neat", "is", "head"),
    ("color:red", "has", "head"),
    ("hair tone:dark/black", "has", "medium"),
    ("maturity:young/baby", "is", "tail"),
    ("state:open", "is", "tail"),  # no box has it
]
BOXES = [  # image, box, area, labels
    (1, [3.7, 2.2, 20.9, 17.5], 300, [1, 0, 1, -1, 0]),
    (2, [0, 0, 55.9, 39.9], 2000, [0, 1, 0, 1, 0]),
    (1, [30, 10, 40, 50], 900.5, [0, 1, -1, 1, 0]),  # over the right and lower edge
    (2, [5, 5, 7, 7], 49.9, [1, 1, 1, 1, 1]),  # too small to count
    (3, [10.5, 20.5, 9, 9], 50.0, [1, 0, 0, 0, -1]),
]


def document() -> dict[str, Any]:
    return {
        "attributes": [
            {
                "id": i,
                "name": name,
                "type": "x",
                "parent_type": "y",
                "is_has_att": kind,
                "freq_set": f,
            }
            for i, (name, kind, f) in enumerate(ATTRIBUTES)
        ],
        "images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "bbox": box,
                "area": area,
                "category_id": 1,
                "att_vec": labels,
            }
            for i, (image, box, area, labels) in enumerate(BOXES, 100)
        ],
    }


def write_files(folder: Path, draw_photos) -> Path:
    (folder / "ovad.json").write_text(json.dumps(document()))
    draw_photos(folder / "photos", ["1.png", "2.png", "3.png"])
    return folder


@pytest.fixture
def files(tmp_path: Path, draw_photos) -> Path:
    return write_files(tmp_path, draw_photos)


def test_sentences_of_an_attribute() -> None:
    assert Attribute("hair tone:dark/black", "has", "head").sentences == [
        "the dark hair",
        "the  has dark hair",
        "the black hair",
        "the  has black hair",
    ]
    young = Attribute("maturity:young/baby", "is", "head").sentences
    assert young[:2] == ["the young", "the  is young"]
    assert [sentence.split()[-1] for sentence in young[4::2]] == [
        "kid", "kids", "child", "toddler", "boy", "girl",
    ]  # fmt: skip


@torch.inference_mode()
def one_by_one(model: Path, photos: Path) -> dict[int, list[float]]:
    network, tokenizer, _ = open_network(model, "matching", 1)
    sentences = [Attribute(*attribute).sentences for attribute in ATTRIBUTES]
    found = {}
    for number, (image, (x, y, w, h), area, _) in enumerate(BOXES, 100):
        if area < 50:
            continue
        pixels = np.array(Image.open(photos / f"{image}.png").convert("RGB"))
        cut = Image.fromarray(pixels[int(y) : int(y) + int(h), int(x) : int(x) + int(w)])
        square = np.array(cut.resize((64, 64), Image.Resampling.BILINEAR))
        tokens = network.encode_image(normalise(torch.from_numpy(square).permute(2, 0, 1)[None]))
        image_embed = network.embed_image(tokens)[0]
        found[number] = [
            max(
                float(image_embed @ network.embed_text(network.encode_text(*text))[0])
                for text in (tokenizer.encode([sentence], 30) for sentence in of_attribute)
            )
            for of_attribute in sentences
        ]
    return found


def expected(scores: dict[int, list[float]]) -> dict[str, float]:
    """Mean over the attributes that some box has, as OVAD's evaluator."""
    each: list[float | None] = []
    for attribute in range(len(ATTRIBUTES)):
        rows = [(BOXES[n - 100][3][attribute], row[attribute]) for n, row in scores.items()]
        labels, values = zip(*[row for row in rows if row[0] != -1], strict=True)
        clipped = np.clip(values, 0, 1)
        each.append(average_precision_score(labels, clipped) if any(labels) else None)
    groups = {"all": range(5), "head": [0, 1], "medium": [2], "tail": [3, 4]}
    return {
        name: 100 * float(np.mean([each[i] for i in members if each[i] is not None]))
        for name, members in groups.items()
    }


def test_a_model_is_measured_as_box_by_box(config, random_model, files: Path, tmp_path) -> None:
    model, out = random_model("matching"), tmp_path / "out"
    evaluate_ovad(config, model, files / "ovad.json", files / "photos", out, NullTracker())
    scores = one_by_one(model, files / "photos")
    rows = pq.read_table(out / "per_example.parquet").to_pylist()
    assert sorted(row["id"] for row in rows) == [100, 101, 102, 104]
    for row in rows:
        assert row["labels"] == BOXES[row["id"] - 100][3]
        # Measured 2e-7.
        np.testing.assert_allclose(row["scores"], scores[row["id"]], atol=1e-5)
    metrics = read_json(out / "metrics.json")["ovad"]
    assert (metrics["boxes"], metrics["attributes"], metrics["attributes_scored"]) == (4, 5, 4)
    for name, value in expected(scores).items():
        assert metrics[f"map_{name}"]["value"] == pytest.approx(value)


def test_scores_of_others(config, files: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    scores = {n: generator.normal(0.5, 0.5, 5).round(1).tolist() for n in (100, 101, 102, 104)}
    rows = [{"id": number, "scores": values} for number, values in scores.items()]
    path, out = tmp_path / "scores.json", tmp_path / "out"
    path.write_text(json.dumps(rows))
    score_ovad(config, path, files / "ovad.json", out, NullTracker())
    metrics = read_json(out / "metrics.json")["ovad"]
    for name, value in expected(scores).items():
        assert metrics[f"map_{name}"]["value"] == pytest.approx(value, abs=1e-9)
    for wrong, message in (
        (rows[1:], "100 has no prediction"),
        ([*rows, {"id": 103, "scores": [0] * 5}], "103 is not in"),
        ([{"id": 100, "scores": [0] * 4}], "scores is .* 5 finite numbers"),
        ([{"id": 100, "scores": [0, 0, 0, 0, float("nan")]}], "scores is .* 5 finite numbers"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=message):
            score_ovad(config, path, files / "ovad.json", out, NullTracker())


@pytest.mark.parametrize("box", [[-3, 0, 20, 20], [60, 0, 20, 20], [0, 0, 0.9, 90]])
def test_a_box_out_of_its_photo(config, random_model, files: Path, tmp_path: Path, box) -> None:
    changed = document()
    changed["annotations"][0]["bbox"] = box
    (files / "ovad.json").write_text(json.dumps(changed))
    arguments = files / "ovad.json", files / "photos", tmp_path / "out", NullTracker()
    with pytest.raises(DataError, match=r"1\.png: box 100 begins at .* outside of the photo"):
        evaluate_ovad(config, random_model("matching"), *arguments)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("attributes", {"id": 3}, "attributes, record 1: id is 3, it must be 0"),
        ("attributes", {"name": "red"}, "attributes, record 1: name is 'red'"),
        ("attributes", {"is_has_att": "was"}, "is_has_att is 'was', it must be has or is"),
        ("attributes", {"freq_set": "rare"}, "freq_set is 'rare'"),
        ("images", {"file_name": "/x.png"}, "images, record 1: image is '/x.png'"),
        ("annotations", {"image_id": 9}, "annotations, record 1: image_id is 9"),
        ("annotations", {"bbox": [1, 2, 3]}, "annotations, record 1: bbox is"),
        ("annotations", {"att_vec": [1, 0, 2, 0, 0]}, "annotations, record 1: att_vec is"),
        ("annotations", {"area": None}, "annotations, record 1: area is None"),
        ("annotations", {"id": 101}, "101 stands more than once: remove all but one"),
    ],
)
def test_a_file_that_breaks_a_rule(
    files: Path, part: str, change: dict[str, object], message: str
) -> None:
    changed = document()
    changed[part][0] |= change
    (files / "ovad.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match=message):
        read_boxes(files / "ovad.json")


def test_the_official_words_make_sentences(shared: Path) -> None:
    """Every leaf of the attribute tree."""
    tree = json.loads((shared / "data/ovad/attribute_tree.json").read_text())
    leaves = [
        f"{kind['name']}:{leaf['name']}" for kind in tree["children"] for leaf in kind["children"]
    ]
    assert len(leaves) > 50
    for name in leaves:
        for sentence in Attribute(name, "is", "head").sentences:
            assert sentence.startswith("the ")
            assert "{" not in sentence
