"""A checkpoint of any kind, ready to be measured or used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from blip.data.text import Tokenizer
from blip.errors import CheckpointError
from blip.metrics.ids import name_some
from blip.models.blip import Blip, Parts
from blip.models.checkpoint import read_checkpoint
from blip.models.device import prepare_device

Need = Literal["captioning", "vqa", "nlvr", "matching", "features"]

# Which models serve a need: a pre-trained one has everything of the captioner and the matcher.
SUFFICIENT: Mapping[Need, tuple[Parts, ...]] = {
    "captioning": ("captioning", "pretrain"),
    "vqa": ("vqa",),
    "nlvr": ("nlvr",),
    "matching": ("matching", "retrieval", "pretrain"),
    "features": ("features", "matching", "retrieval", "pretrain", "vqa"),
}


class Network(NamedTuple):
    """A model in evaluation mode with its tokenizer, on the device to use."""

    model: Blip
    tokenizer: Tokenizer
    device: torch.device


def open_network(
    checkpoint: Path, need: Need, threads: int, vocabulary: str | None = None
) -> Network:
    """Read a checkpoint, and put it on the GPU where there is one.

    Args:
        checkpoint: See `read_checkpoint`.
        need: What it is to do.
        threads: Of this process.
        vocabulary: See `read_checkpoint`.

    Raises:
        CheckpointError: It cannot be read, was made for something else, or holds what is no number.
        ConfigError: There is no such vocabulary.
    """
    found = read_checkpoint(checkpoint, vocabulary)
    if found.model.parts not in SUFFICIENT[need]:
        raise CheckpointError(
            f"{checkpoint}: holds a model for {found.model.parts!r}, but {need} needs one for "
            f"{' or '.join(map(repr, SUFFICIENT[need]))}: name another checkpoint"
        )
    device = prepare_device(threads)
    model = found.model.to(device).eval()
    weights = model.named_parameters()
    damaged = [name for name, weight in weights if not torch.isfinite(weight).all()]
    if damaged:
        raise CheckpointError(
            f"{checkpoint}: {name_some(damaged)} holds what is not a number: fetch or make it anew"
        )
    return Network(model, Tokenizer(found.vocabulary), device)


def require_finite(scores: Tensor, what: str) -> None:
    """See that a model's scores are numbers: where none is, nothing ranks before the right one.

    Raises:
        CheckpointError: One is not; `what` says of what they are.
    """
    if not torch.isfinite(scores).all():
        raise CheckpointError(
            f"the model's scores of {what} are not numbers: its weights are damaged"
        )
