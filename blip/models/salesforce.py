"""Checkpoints of the reference, files of `torch.save` (BLIP.md 6): read as a model of ours, and written.

Their contents alone tell what they are; only the number of attention heads is not among them.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from blip import config
from blip.data.text import Tokenizer
from blip.errors import CheckpointError
from blip.files import atomic_file
from blip.models.blip import Blip, Parts
from blip.models.convert import (
    HAS_MOMENTUM,
    QUEUE_SIZE,
    derived,
    from_official,
    momentum_from_official,
    new_momentum,
    official_names,
    to_official,
)
from blip.models.tensors import check_tensors, read_torch

RELEASED_HEADS = {768: 12, 1024: 16}  # by width: ViT-B and the text stacks, ViT-L
LARGE_LAYERS, LARGE_DROP_PATH = 24, 0.1  # ViT-L is always trained with it
DROPOUT, EMBED_SIZE, INIT_STD = 0.1, 256, 0.02


class Heads(NamedTuple):
    """Numbers of attention heads; `None`: that of the released models of this width."""

    vision: int | None = None
    text: int | None = None


NO_HEADS = Heads()


@dataclass(frozen=True)
class Checkpoint:
    """A model, whatever kind of file it was read from.

    Attributes:
        model: On the CPU, in training mode as built.
        vocabulary: Its `vocab.txt`.
        momentum: Its twin and queue (see `blip.models.convert`), where there are any.
        notes: What the reader of the result should know, a sentence each.
    """

    model: Blip
    vocabulary: Path
    momentum: dict[str, Tensor] | None = None
    notes: list[str] = field(default_factory=list)


def read_salesforce(path: Path, vocabulary: Path, heads: Heads) -> Checkpoint:
    """Read a checkpoint of the reference.

    Args:
        path: The `.pth`.
        vocabulary: Its `vocab.txt`.
        heads: Of its attentions.

    Raises:
        CheckpointError: It cannot be read, is none of the reference's classes, or does not fit.
    """
    return build(read_torch(path), vocabulary, heads, str(path))


def build(
    tensors: Mapping[str, Tensor],
    vocabulary: Path,
    heads: Heads,
    source: str,
    named: Callable[[str], str] = str,
) -> Checkpoint:
    """Make a model of a state under the reference's names, every tensor of which is accounted for.

    Args:
        tensors: The state.
        vocabulary: Its `vocab.txt`.
        heads: Of its attentions.
        source: Where it comes from, for errors.
        named: What a tensor is called there, for errors.

    Raises:
        CheckpointError: It does not fit a class of the reference, or the vocabulary.
    """
    parts = recognise(tensors)
    sizes = Sizes(tensors, source, named)
    shape = sizes.model(heads)
    text = Tokenizer(vocabulary)
    if text.vocab_size != sizes.vocab_size:
        raise CheckpointError(
            f"{source}: has {sizes.vocab_size} token ids, but {vocabulary} gives "
            f"{text.vocab_size}, [DEC] and [ENC] included: name the vocabulary it was trained with"
        )
    with torch.device("meta"):
        model = Blip(shape, sizes.image_size, text.vocab_size, text.special, parts)
        has_momentum = parts in HAS_MOMENTUM and any(map(_of_momentum, tensors))
        momentum = new_momentum(model, sizes.queue_size) if has_momentum else None
        expected = to_official(model, momentum)
    optional = derived(expected).keys() | set(filter(_of_momentum, expected))
    check_tensors(
        source,
        {named(name): tensor for name, tensor in tensors.items()},
        {named(name): tensor for name, tensor in expected.items()},
        optional={named(name) for name in optional},
    )
    _check_repeated(model, tensors, source, named)
    state = from_official(model, tensors, source)
    model.load_state_dict({name: t.to(torch.float32) for name, t in state.items()}, assign=True)
    if not has_momentum:
        return Checkpoint(model, vocabulary)
    return Checkpoint(model, vocabulary, *_read_momentum(model, tensors, expected, sizes))


def write_salesforce(checkpoint: Checkpoint, out: Path) -> list[str]:
    """Write a checkpoint of the reference, of the class that has the model's parts.

    Returns:
        What was not in the model and had to be made, a sentence each.
    """
    model, momentum, notes = checkpoint.model, checkpoint.momentum, []
    if model.parts in HAS_MOMENTUM and momentum is None:
        momentum = new_momentum(model)
        notes.append(
            "momentum copies and queue: the model has none, so the copies are its own weights "
            f"and the queue {QUEUE_SIZE} vectors of noise, as when training starts"
        )
    state = {name: t.contiguous() for name, t in to_official(model, momentum).items()}
    with atomic_file(out) as file:
        torch.save({"model": state}, file)
    return notes


def recognise(names: Iterable[str]) -> Parts:
    """Tell the parts of a model from the modules that its state is of."""
    modules = {name.split(".")[0] for name in names}
    if "cls_head" in modules:
        return "nlvr"
    if "text_decoder" in modules:
        if "text_encoder" not in modules:
            return "captioning"
        return "pretrain" if modules & {"itm_head", "vision_proj", "temp"} else "vqa"
    if "itm_head" in modules:
        return "retrieval" if "temp" in modules else "matching"
    return "features"


class Sizes:
    """The sizes of a model, read off the shapes of its state."""

    def __init__(
        self, tensors: Mapping[str, Tensor], source: str, named: Callable[[str], str]
    ) -> None:
        self.tensors, self.source, self.named = tensors, source, named
        has_encoder = any(name.startswith("text_encoder.") for name in tensors)
        self.text = "text_encoder" if has_encoder else "text_decoder.bert"
        words = f"{self.text}.embeddings.word_embeddings.weight"
        self.vocab_size, self.text_width = self.shape(words, 2)
        self.width, _, _, self.patch_size = self.shape("visual_encoder.patch_embed.proj.weight", 4)
        num_patches = self.shape("visual_encoder.pos_embed", 3)[1] - 1
        side = math.isqrt(max(num_patches, 0))
        if side == 0 or side * side != num_patches:
            name = named("visual_encoder.pos_embed")
            raise CheckpointError(f"{source}: {name} is of {num_patches} patches, not a square")
        self.image_size = side * self.patch_size
        has_queue = "image_queue" in tensors
        self.queue_size = self.shape("image_queue", 2)[1] if has_queue else QUEUE_SIZE

    def shape(self, name: str, num_axes: int) -> tuple[int, ...]:
        """Give the shape of a tensor that every model has."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.source}: is no BLIP: missing {self.named(name)}")
        found = tuple(self.tensors[name].shape)
        if len(found) != num_axes:
            raise CheckpointError(
                f"{self.source}: {self.named(name)} of shape {found}, expected {num_axes} axes"
            )
        return found

    def model(self, heads: Heads) -> config.Model:
        """Give the configuration of the model."""
        vision_layers = self._count(r"visual_encoder\.blocks\.(\d+)\.")
        text_layers = self._count(rf"{re.escape(self.text)}\.encoder\.layer\.(\d+)\.")
        dense = f"{self.text}.encoder.layer.0.intermediate.dense.weight"
        positions = f"{self.text}.embeddings.position_embeddings.weight"
        has_projection = "vision_proj.weight" in self.tensors
        try:
            return config.Model(
                vision=config.Vision(
                    patch_size=self.patch_size,
                    width=self.width,
                    num_layers=vision_layers,
                    num_heads=heads.vision or self._released_heads(self.width, "vision"),
                    drop_path=LARGE_DROP_PATH if vision_layers == LARGE_LAYERS else 0.0,
                    checkpoint_layers=0,
                ),
                text=config.Text(
                    width=self.text_width,
                    num_layers=text_layers,
                    num_heads=heads.text or self._released_heads(self.text_width, "text"),
                    intermediate=self.shape(dense, 2)[0],
                    max_positions=self.shape(positions, 2)[0],
                    dropout=DROPOUT,
                ),
                embed_size=self.shape("vision_proj.weight", 2)[0] if has_projection else EMBED_SIZE,
                init_std=INIT_STD,
                vision_weights=None,
                text_weights=None,
            )
        except ValidationError as error:
            reasons = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()
            )
            raise CheckpointError(f"{self.source}: does not describe a model: {reasons}") from None

    def _released_heads(self, width: int, stack: str) -> int:
        if width not in RELEASED_HEADS:
            raise CheckpointError(
                f"{self.source}: does not tell the number of attention heads, and no released "
                f"model has {stack} width {width}: give --{stack}-heads to blip convert"
            )
        return RELEASED_HEADS[width]

    def _count(self, layer: str) -> int:
        return len({found[1] for name in self.tensors if (found := re.match(layer, name))})


def _read_momentum(
    model: Blip, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], sizes: Sizes
) -> tuple[dict[str, Tensor], list[str]]:
    """Give the momentum, what is missing of it as training starts with it, and a note of that."""
    wanted = set(filter(_of_momentum, expected)) - derived(expected).keys()
    missing, notes = sorted(wanted - tensors.keys()), []
    if missing:
        begin = to_official(model, new_momentum(model, sizes.queue_size))
        tensors = {**tensors, **{name: begin[name] for name in missing}}
        notes.append(
            f"momentum copies and queue: {len(missing)} tensors are missing, {missing[0]} first; "
            "they are taken as when training starts"
        )
    momentum = momentum_from_official(model, tensors)
    whole = {n: t.to(torch.float32) if t.is_floating_point() else t for n, t in momentum.items()}
    return whole, notes


def _of_momentum(name: str) -> bool:
    module = name.split(".")[0]
    return module.endswith("_m") or module.endswith("_queue") or module == "queue_ptr"


def _check_repeated(
    model: Blip, tensors: Mapping[str, Tensor], source: str, named: Callable[[str], str]
) -> None:
    """Demand that one tensor stored under several names is the same under each."""
    pairs: list[tuple[str, Tensor, Tensor]] = [
        (name, tensors[name], wanted)
        for name, wanted in derived(tensors).items()
        if name in tensors
    ]
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        original = first.setdefault(id(parameter), name)
        if original != name:
            names = zip(official_names(name), official_names(original), strict=True)
            pairs += [(theirs, tensors[theirs], tensors[other]) for theirs, other in names]
    for name, tensor, wanted in pairs:
        if not torch.equal(tensor, wanted):
            raise CheckpointError(
                f"{source}: {named(name)} is not what the rest of the model says: "
                "in BLIP it is shared or fixed"
            )
