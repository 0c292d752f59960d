"""A small model and batch for the tests of objectives."""

from collections.abc import Callable

import pytest
import torch

from blip import config
from blip.batch import Batch, SpecialTokens
from blip.config import PRESETS, load_config
from blip.models.blip import Blip, Parts

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, dec=400, enc=401)


@pytest.fixture
def build() -> Callable[[Parts], Blip]:
    """Build the demo's model, with 402 tokens."""

    def built(parts: Parts) -> Blip:
        torch.manual_seed(0)
        return Blip(load_config(PRESETS / "demo.yaml").model, 64, 402, SPECIAL, parts)

    return built


@pytest.fixture
def contrast() -> Callable[..., config.Contrast]:
    """Give the demo's settings of contrast, with changes."""
    settings = load_config(PRESETS / "demo.yaml").pretrain.contrast
    return lambda **changes: settings.model_copy(update={"queue_size": 12} | changes)


@pytest.fixture
def batch() -> Callable[..., Batch]:
    """Draw a batch of texts of various lengths."""

    def drawn(size: int, seed: int = 0, image_ids: list[int] | None = None) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(4, 10, (size,), generator=generator)
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        token_ids = torch.randint(5, 400, mask.shape, generator=generator) * mask
        token_ids[:, 0] = SPECIAL.cls
        token_ids[torch.arange(size), lengths - 1] = SPECIAL.sep
        images = torch.randn(size, 3, 64, 64, generator=generator)
        ids = torch.arange(size) if image_ids is None else torch.tensor(image_ids)
        return Batch(images, token_ids, mask, ids)

    return drawn
