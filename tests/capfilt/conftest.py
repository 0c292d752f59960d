"""A small drawn collection, taken in, and models with random weights that read it."""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Demo:
    """Where everything lies."""

    config: Config
    web: Path
    captioner: Path
    filter: Path


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    raw = folder / "data"
    raw.mkdir()
    sizes = {"world.web": 30, "world.human": 4, "world.test": 4, "ingest.shard_size": 10}
    files = {
        f"ingest.sources.{name}.{key}": str(raw / f"{name}.{extension}")
        for name in ("web", "human", "test")
        for key, extension in (("annotations", "json"), ("images", "tar"))
    }
    settings = {"capfilt.decoding.batch_size": 4, "capfilt.score_batch_size": 7}
    settings["evaluate.truth"] = str(raw / "truth.jsonl")
    config = load_config(PRESETS / "demo.yaml", {**sizes, **files, **settings})
    assert config.world is not None
    draw_world(config.world, raw)
    web = folder / "datasets/web"
    web.mkdir(parents=True)
    ingest(config.ingest, "web", web, folder / "run", NullTracker())
    texts = open_dataset(web).captions()["text"].to_pylist()
    return Demo(
        config,
        web,
        _write_model(config, "captioning", texts, folder / "models/captioner"),
        _write_model(config, "retrieval", texts, folder / "models/filter"),
    )


def _write_model(config: Config, parts: Parts, texts: list[str], out: Path) -> Path:
    out.mkdir(parents=True)
    train_vocabulary(texts, config.tokenizer.size, out)
    tokenizer = Tokenizer(out / VOCABULARY)
    torch.manual_seed(0)
    model = Blip(config.model, 64, tokenizer.vocab_size, tokenizer.special, parts)
    save_model(model, out)
    return out
