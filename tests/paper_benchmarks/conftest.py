"""Photos of noise, and small models with random weights that look at them."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip.config import PRESETS, Config, load_config
from blip.data.text import VOCABULARY, Tokenizer, train_vocabulary
from blip.models.blip import Blip, Parts
from blip.models.checkpoint import save_model
from blip.tracker import NullTracker

WORDS = (
    "what color is the dog how many cats are there left right image both two three red blue green "
    "a an yes no on table man woman bird boat water"
)


class Keeper(NullTracker):
    """Remembers the names of the files that it is given."""

    def __init__(self) -> None:
        self.artifacts: list[str] = []

    def artifact(self, path: Path, folder: str = "") -> None:
        """Remember a file, which is there."""
        assert path.is_file()
        self.artifacts.append(path.name)


@pytest.fixture
def keeper() -> Keeper:
    """A tracker that tells what it was given."""
    return Keeper()


@pytest.fixture(scope="session")
def config() -> Config:
    """Settings with which several batches are read."""
    settings = {"evaluate.batch_size": 3, "evaluate.bootstrap_samples": 20}
    return load_config(PRESETS / "demo.yaml", settings)


@pytest.fixture(scope="session")
def random_model(
    config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Parts], Path]:
    """Write a model whose random weights are large enough to tell texts and images apart."""

    def write(parts: Parts) -> Path:
        out = tmp_path_factory.mktemp(parts)
        train_vocabulary([WORDS, WORDS, "abcdefghijklmnopqrstuvwxyz 0123456789 ?,'"], 200, out)
        tokenizer = Tokenizer(out / VOCABULARY)
        torch.manual_seed(0)
        model = Blip(config.model, 64, tokenizer.vocab_size, tokenizer.special, parts)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        save_model(model, out)
        return out

    return write


@pytest.fixture(scope="session")
def draw_photos() -> Callable[[Path, Iterable[str]], None]:
    """Write photos of noise under the given names below a folder."""

    def draw(folder: Path, names: Iterable[str]) -> None:
        rng = np.random.default_rng(0)
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(path)

    return draw
