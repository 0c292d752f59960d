"""A small model for the tests of models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from blip.batch import SpecialTokens
from blip.config import PRESETS, load_config
from blip.models.blip import Blip, Parts


@pytest.fixture
def build() -> Callable[..., Blip]:
    """Build the demo's model, 402 tokens, with changes to its text or vision section."""

    def built(parts: Parts, image_size: int = 64, **changes: dict[str, object]) -> Blip:
        sizes = load_config(PRESETS / "demo.yaml").model
        sections = {
            name: getattr(sizes, name).model_copy(update=update) for name, update in changes.items()
        }
        torch.manual_seed(0)
        special = SpecialTokens(pad=0, cls=2, sep=3, dec=400, enc=401)
        model = Blip(sizes.model_copy(update=sections), image_size, 402, special, parts).eval()
        with torch.no_grad():  # biases and norms too, so that none can be forgotten unseen
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    return built


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `vocab.txt` of the model that `build` builds: 400 pieces."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(395))]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n")
    return path
