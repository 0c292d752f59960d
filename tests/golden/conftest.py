"""Reference outputs (golden/README.md of the shared folder) and the models they belong to.

Sizes, settings and ids are read from the files, so that other cases of the same form can be run.
"""

import json
import math
import re
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


@pytest.fixture(scope="session")
def special(shared: Path) -> SpecialTokens:
    """Ids of the tiny vocabulary."""
    tiny = json.loads((shared / "golden" / "tokenizer.json").read_text())["tiny"]
    return SpecialTokens(tiny["pad"], tiny["cls"], tiny["sep"], tiny["dec_bos"], tiny["enc"])


@pytest.fixture(scope="session")
def heads(shared: Path, golden: Callable[[str], Golden]) -> tuple[int, int]:
    """Number of attention heads, vision and text: no state dict tells."""
    text = json.loads((shared / "golden" / "tiny_med_config.json").read_text())
    return golden("vit_tiny").meta["config"]["num_heads"], text["num_attention_heads"]


@pytest.fixture
def tiny_model(
    heads: tuple[int, int], special: SpecialTokens
) -> Callable[[Parts, dict[str, Tensor]], Blip]:
    """Build a tiny model in evaluation mode from a state under the reference's names."""

    def build(parts: Parts, official: dict[str, Tensor]) -> Blip:
        sizes = sizes_of(official, *heads)
        patches = official["visual_encoder.pos_embed"].shape[1] - 1
        words = official[f"{_text_stack(official)}.embeddings.word_embeddings.weight"]
        image_size = math.isqrt(patches) * sizes.vision.patch_size
        model = Blip(sizes, image_size, len(words), special, parts)
        model.load_state_dict(from_official(model, official, "golden"))
        return model.eval()

    return build


def sizes_of(official: dict[str, Tensor], vision_heads: int, text_heads: int) -> config.Model:
    """Read the sizes of a model off the shapes of its state."""
    text = _text_stack(official)
    kernel = official["visual_encoder.patch_embed.proj.weight"]
    intermediate, width = official[f"{text}.encoder.layer.0.intermediate.dense.weight"].shape
    positions = official[f"{text}.embeddings.position_embeddings.weight"]
    embeddings = official.get("vision_proj.bias", torch.zeros(1))  # not all models have one
    return config.Model(
        vision=config.Vision(
            patch_size=kernel.shape[-1],
            width=len(kernel),
            num_layers=_count(official, r"visual_encoder\.blocks\.(\d+)\."),
            num_heads=vision_heads,
            drop_path=0,
            checkpoint_layers=0,
        ),
        text=config.Text(
            width=width,
            num_layers=_count(official, rf"{re.escape(text)}\.encoder\.layer\.(\d+)\."),
            num_heads=text_heads,
            intermediate=intermediate,
            max_positions=len(positions),
            dropout=0.1,
        ),
        embed_size=len(embeddings),
        init_std=0.02,
        vision_weights=None,
        text_weights=None,
    )


def _text_stack(official: dict[str, Tensor]) -> str:
    encoder = any(name.startswith("text_encoder.") for name in official)
    return "text_encoder" if encoder else "text_decoder.bert"


def _count(official: dict[str, Tensor], layer: str) -> int:
    return len({found[1] for name in official if (found := re.match(layer, name))})


@pytest.fixture
def contrast(
    golden: Callable[[str], Golden],
) -> Callable[[dict[str, Tensor], float], config.Contrast]:
    """Settings of the contrast of a recorded step: its initial state, and its alpha."""

    def settings(official: dict[str, Tensor], alpha: float) -> config.Contrast:
        return config.Contrast(
            momentum=golden("pretrain_1rank").meta["momentum"],  # one for all recorded steps
            queue_size=official["image_queue"].shape[1],
            alpha=alpha,
            alpha_ramp_epochs=0,
            temperature=float(official["temp"]),
            uniform_negatives=0,
        )

    return settings


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
    """Give the largest difference of named tensors of ours from the reference's.

    What is larger than 1 may differ by a millionth of itself more.
    """

    def worst(
        ours: Iterable[tuple[str, Tensor]], official: dict[str, Tensor], twin: bool = False
    ) -> float:
        differences = [
            difference(tensor.detach(), joined(official, name, twin)) for name, tensor in ours
        ]
        return max(differences)

    return worst


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs() - 1e-6 * theirs.abs()).max().item()


def joined(official: dict[str, Tensor], name: str, twin: bool = False) -> Tensor:
    parts = [official[theirs] for theirs in official_names(name, twin)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]
