"""A small drawn test set, taken in, and models with random weights that read it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from blip.config import PRESETS, Config, load_config
from blip.data.dataset import open_dataset
from blip.data.ingest import ingest
from blip.data.text import VOCABULARY, Tokenizer, train_vocabulary
from blip.data.world import draw_world
from blip.models.blip import Blip, Parts
from blip.models.checkpoint import save_model
from blip.tracker import NullTracker


@pytest.fixture(scope="session")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """Give a configuration and 12 images with their captions, in two shards."""
    folder = tmp_path_factory.mktemp("test")
    sizes = {"world.web": 2, "world.human": 2, "world.test": 12, "ingest.shard_size": 7}
    files = {
        "ingest.sources.test.annotations": str(folder / "test.json"),
        "ingest.sources.test.images": str(folder / "test.tar"),
    }
    settings = {"evaluate.k": 5, "evaluate.batch_size": 4, "evaluate.bootstrap_samples": 50}
    noise = dict.fromkeys(["mismatch", "colour", "shape", "count", "relation", "truncated"], 0.0)
    noise = {f"world.noise.{kind}": share for kind, share in noise.items()}
    config = load_config(PRESETS / "demo.yaml", {**sizes, **files, **settings, **noise})
    assert config.world is not None
    draw_world(config.world, folder)
    data = folder / "dataset"
    data.mkdir()
    ingest(config.ingest, "test", data, folder / "run", NullTracker())
    return config, data


@pytest.fixture(scope="session")
def random_model(
    test_set: tuple[Config, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Parts], Path]:
    """Write a model with random weights."""
    config, data = test_set

    def write(parts: Parts) -> Path:
        out = tmp_path_factory.mktemp(parts)
        texts = open_dataset(data).captions()["text"].to_pylist()
        train_vocabulary(texts, config.tokenizer.size, out)
        tokenizer = Tokenizer(out / VOCABULARY)
        torch.manual_seed(0)
        model = Blip(config.model, 64, tokenizer.vocab_size, tokenizer.special, parts)
        save_model(model, out)
        return out

    return write
