"""A checkpoint of any kind, ready to be measured or used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from blip.data.text import Tokenizer
from blip.errors import CheckpointError
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
        CheckpointError: It cannot be read, or was made for something else.
        ConfigError: There is no such vocabulary.
    """
    found = read_checkpoint(checkpoint, vocabulary)
    if found.model.parts not in SUFFICIENT[need]:
        raise CheckpointError(
            f"{checkpoint}: holds a model for {found.model.parts!r}, but {need} needs one for "
            f"{' or '.join(map(repr, SUFFICIENT[need]))}: name another checkpoint"
        )
    device = prepare_device(threads)
    return Network(found.model.to(device).eval(), Tokenizer(found.vocabulary), device)
