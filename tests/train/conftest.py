"""A tiny objective and its batches: what the loop needs, and nothing of BLIP."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip.batch import Batch
from blip.config import Training, load_config
from blip.objectives import Losses, Objective, Position

PARAMS = Path(__file__).parents[2] / "blip/presets/demo.yaml"


class Toy(Objective):
    """A classifier with dropout, a buffer that moves, a shared weight and a frozen one."""

    ring: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.again = self.first
        self.second = nn.Linear(8, 3)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("ring", torch.zeros(8))

    def forward(self, batch: Batch, position: Position) -> Losses:
        hidden = self.dropout(self.first(batch.images.flatten(1)).relu())
        with torch.no_grad():
            self.ring.lerp_(hidden.mean(0).float(), 0.1)
        # Multinomial draws, as hard negatives are.
        odds = self.second(hidden + self.ring).detach().softmax(1).nan_to_num(1.0)
        labels = torch.multinomial(odds, 1)[:, 0]
        loss = nn.functional.cross_entropy(self.second(hidden), (labels + batch.image_ids) % 3)
        return Losses(loss, {"itm": loss.detach(), "temperature": torch.tensor(0.07)})


class ToyLoader:
    """Batches that are a function of the step."""

    steps_per_epoch = 7

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(4, 3, 2, 2, generator=generator)
            ids = torch.randint(0, 3, (4,), generator=generator)
            yield Batch(images, ids[:, None], ids[:, None], ids)

    def keys_of(self, step: int) -> list[str]:
        return [f"image-{step}-{row}" for row in range(4)]


@pytest.fixture
def toy() -> tuple[Toy, ToyLoader]:
    torch.manual_seed(5)
    return Toy(), ToyLoader()


@pytest.fixture
def training() -> Callable[..., Training]:
    def build(**changes: Any) -> Training:
        short = {"steps": 20, "checkpoint_every": 5, "log_every": 3}
        return load_config(PARAMS).finetune.captioning.model_copy(update={**short, **changes})

    return build


class Points:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.told.append((step, dict(values)))

    def artifact(self, path: Path, folder: str = "") -> None:
        raise AssertionError("the loop hands over no files")


@pytest.fixture
def points() -> Points:
    return Points()
