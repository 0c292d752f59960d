"""A benchmark's own annotation file is measured on as a dataset version is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip.data.transforms import normalise
from blip.errors import ConfigError, DataError
from blip.evaluate.captioning import evaluate_captioning
from blip.evaluate.evaluation_set import open_evaluation_set
from blip.evaluate.retrieval import evaluate_retrieval
from blip.tracker import NullTracker


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Write three photos and their annotations."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(3):
        name = f"val/{number}.png"
        (tmp_path / "val").mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            tmp_path / name
        )
        rows.append({"image": name, "caption": [f"text {number}", "a dog"]})
    (tmp_path / "test.json").write_text(json.dumps(rows))
    return tmp_path / "test.json"


def test_an_annotation_file_with_its_photos(annotated: Path) -> None:
    images = open_evaluation_set(annotated, annotated.parent)
    assert images.keys == ("val/0.png", "val/1.png", "val/2.png")
    assert images.texts == [[f"text {number}", "a dog"] for number in range(3)]
    for number, pixels in enumerate(images.pixels(range(1, 3), 32), 1):
        photo = torch.from_numpy(np.array(Image.open(annotated.parent / f"val/{number}.png")))
        assert torch.equal(pixels, normalise(photo.permute(2, 0, 1)[None])[0])


def test_a_photo_that_is_missing_or_damaged_is_named(annotated: Path) -> None:
    images = open_evaluation_set(annotated, annotated.parent)
    (annotated.parent / "val/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"val/1\.png: "):
        images.pixels(range(3), 32)
    (annotated.parent / "val/1.png").unlink()
    with pytest.raises(DataError, match=r"val/1\.png: cannot be read: No such file"):
        images.pixels(range(3), 32)


@pytest.mark.parametrize("measure", [evaluate_retrieval, evaluate_captioning])
def test_missing_photos_are_named_before_a_model_is_read(
    measure, test_set, annotated: Path, tmp_path: Path
) -> None:
    (annotated.parent / "val/1.png").unlink()
    images = open_evaluation_set(annotated, annotated.parent)
    with pytest.raises(DataError, match=r"photos are missing: .*val/1\.png: name the folder"):
        measure(test_set[0], Path("no model"), images, tmp_path, NullTracker())


def test_photos_belong_to_an_annotation_file(annotated: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="say where they lie: --photos FOLDER"):
        open_evaluation_set(annotated)
    with pytest.raises(ConfigError, match="has its own images"):
        open_evaluation_set(tmp_path, tmp_path)
