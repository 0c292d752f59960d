"""A benchmark at the smallest size: photos, an annotation file as COCO's, and a random checkpoint."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from blip.config import PRESETS, Config, load_config, merge, read_yaml
from blip.data.text import VOCABULARY, Tokenizer, train_vocabulary
from blip.models.blip import Blip, Parts
from blip.models.checkpoint import save_model

COLOURS = ("red", "green", "blue", "white", "grey", "black")


def write_params(folder: Path) -> Config:
    """Write a `params.yaml` for so few images."""
    tiny = {"evaluate.k": 4, "evaluate.batch_size": 4, "evaluate.bootstrap_samples": 20}
    document = merge(read_yaml(PRESETS / "demo.yaml"), tiny, PRESETS / "demo.yaml")
    (folder / "params.yaml").write_text(yaml.safe_dump(document))
    return load_config(folder / "params.yaml", {})


def write_test_set(folder: Path) -> Path:
    """Write six photos with two captions each; give the annotation file."""
    (folder / "val2014").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, colour in enumerate(COLOURS):
        name = f"val2014/COCO_val2014_{number:012}.jpg"
        noise = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
        captions = [f"a {colour} ring above a square", f"two {colour} circles"]
        rows.append({"image": name, "caption": captions})
    (folder / "test.json").write_text(json.dumps(rows))
    return folder / "test.json"


def write_model(config: Config, parts: Parts, out: Path) -> Path:
    """Write a model with random weights."""
    out.mkdir(parents=True)
    texts = [f"a {colour} ring above a square two circles" for colour in COLOURS]
    train_vocabulary(texts, config.tokenizer.size, out)
    tokenizer = Tokenizer(out / VOCABULARY)
    torch.manual_seed(0)
    save_model(Blip(config.model, 64, tokenizer.vocab_size, tokenizer.special, parts), out)
    return out
