"""Reference outputs (golden/README.md of the shared folder) and the models they belong to."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from blip import config
from blip.batch import SpecialTokens
from blip.models.blip import Blip, Parts
from blip.models.convert import from_official, official_names
from blip.objectives.contrast import MomentumContrast

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, dec=123, enc=124)


@dataclass(frozen=True)
class Golden:
    """One file: `golden["out/logits"]`, `golden.under("sd/")`, `golden.meta["alpha"]`."""

    name: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], Golden]:
    def load(name: str) -> Golden:
        with safe_open(shared / "golden" / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            meta = {key: _parsed(value) for key, value in (file.metadata() or {}).items()}
        return Golden(name, tensors, meta)

    return load


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


@pytest.fixture
def tiny_config() -> config.Model:
    return config.Model(
        vision=config.Vision(
            patch_size=16, width=48, num_layers=2, num_heads=4, drop_path=0, checkpoint_layers=0
        ),
        text=config.Text(
            width=64, num_layers=2, num_heads=4, intermediate=128, max_positions=64, dropout=0.1
        ),
        embed_size=32,
        init_std=0.02,
        vision_weights=None,
        text_weights=None,
    )


@pytest.fixture
def tiny_model(tiny_config: config.Model) -> Callable[[Parts, dict[str, Tensor]], Blip]:
    """Build a tiny model in evaluation mode from a state under the reference's names."""

    def build(parts: Parts, official: dict[str, Tensor]) -> Blip:
        model = Blip(tiny_config, 64, 125, SPECIAL, parts)
        model.load_state_dict(from_official(model, official, "golden"))
        return model.eval()

    return build


@pytest.fixture
def blank_heads() -> dict[str, Tensor]:
    """Zeros for the heads that a reference model of fewer parts does not have."""
    return {
        "vision_proj.weight": torch.zeros(32, 48),
        "vision_proj.bias": torch.zeros(32),
        "text_proj.weight": torch.zeros(32, 64),
        "text_proj.bias": torch.zeros(32),
        "itm_head.weight": torch.zeros(2, 64),
        "itm_head.bias": torch.zeros(2),
        "temp": torch.tensor(0.07),
    }


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def restore() -> Callable[[MomentumContrast, dict[str, Tensor]], None]:
    """Put the reference's momentum twin and queue, of a state under its names, into ours."""

    def fill(contrast: MomentumContrast, official: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in contrast.twin.named_parameters():
                parameter.copy_(joined(official, name, twin=True))
            contrast.queue.images.copy_(official["image_queue"].T)
            contrast.queue.texts.copy_(official["text_queue"].T)
            if "idx_queue" in official:
                contrast.queue.image_ids.copy_(official["idx_queue"][0])
            contrast.queue.position.copy_(official.get("queue_ptr", official.get("ptr_queue"))[0])

    return fill


@pytest.fixture
def worst_difference() -> Callable[..., float]:
    """Give the largest difference of named tensors of ours from the reference's."""

    def worst(
        ours: Iterable[tuple[str, Tensor]], official: dict[str, Tensor], twin: bool = False
    ) -> float:
        differences = [
            (tensor.detach() - joined(official, name, twin)).abs().max().item()
            for name, tensor in ours
        ]
        return max(differences)

    return worst


def joined(official: dict[str, Tensor], name: str, twin: bool = False) -> Tensor:
    parts = [official[theirs] for theirs in official_names(name, twin)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]
