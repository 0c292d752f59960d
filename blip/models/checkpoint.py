"""Models on disk: weights in safetensors beside a config.json that says how to build them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from blip import config
from blip.batch import SpecialTokens
from blip.errors import CheckpointError, DataError
from blip.files import atomic_file, read_json, write_json
from blip.models.blip import TEMPERATURE, Blip, Parts
from blip.models.vit import resize_position_embedding

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
POSITIONS = "vision.position_embedding"
# What a task adds to a pre-trained model. The decoder of `vqa` reads a question, whose states are
# of another width than the tokens of ViT-L.
_ADDED: Mapping[Parts, str] = {
    "retrieval": r"^temperature$",
    "nlvr": r"^classifier\.|\.cross_attention\.merge\.",
    "vqa": r"^text_decoder\..*\.cross_attention\.key_value\.",
}
_STREAM = re.compile(r"(?<=cross_attention\.)(first|second)\.")


def save_model(model: Blip, out: Path) -> None:
    """Write `model.safetensors` and `config.json` into a folder; equal weights give equal bytes.

    A parameter that two stacks share is written once, under its first name.
    """
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    with atomic_file(out / WEIGHTS) as file:
        file.write(safetensors.torch.save(tensors))
    write_json(
        out / CONFIG,
        {
            "parts": model.parts,
            "image_size": model.image_size,
            "vocab_size": model.vocab_size,
            "special": model.special._asdict(),
            "model": model.config.model_dump(mode="json"),
        },
    )


def load_model(
    path: Path,
    parts: Parts | None = None,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Blip:
    """Read a model that `save_model` wrote.

    Args:
        path: The folder.
        parts: Make these parts of it, as fine-tuning begins; `None` takes what is there. What a
            task adds begins random, and both image streams of `nlvr` as the one there is.
        image_size: Side of the images the model shall read; the position embedding is resampled to
            it.
        device: Where to put it.

    Raises:
        CheckpointError: A file is missing or damaged, the parts are not there, or a tensor is
            missing, unexpected or of another shape; the tensors are named.
    """
    stored = _build(path / CONFIG, _read_config(path / CONFIG))
    names = _shared_names(stored)
    tensors = _read_weights(path / WEIGHTS)
    _check(path / WEIGHTS, tensors, {n: stored.get_parameter(n) for n in set(names.values())})
    parts = parts or stored.parts
    with torch.device("meta"):
        model = Blip(
            stored.config, image_size or stored.image_size, stored.vocab_size, stored.special, parts
        )
    num_tokens = model.vision.position_embedding.shape[1]
    tensors[POSITIONS] = resize_position_embedding(tensors[POSITIONS].float(), num_tokens)
    placed = {name: t.to(device, torch.float32, copy=True) for name, t in tensors.items()}
    every = {name: placed[first] for name, first in names.items()}
    state: dict[str, Tensor] = {}
    owners: dict[int, int] = {}
    missing = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tensor = every.get(name, every.get(_STREAM.sub("", name)))
        if tensor is None or tensor.shape != parameter.shape:
            if not re.search(_ADDED.get(parts, "^$"), name):
                missing.append(name)
                continue
            tensor = _begin(name, parameter.shape, model.config.init_std).to(device)
        # What was one parameter and is two now begins alike, and parts.
        elif owners.setdefault(id(tensor), id(parameter)) != id(parameter):
            tensor = tensor.clone()
        state[name] = tensor
    if missing:
        raise CheckpointError(
            f"{path}: holds the parts {stored.parts!r}, not {parts!r}: {missing[0]} and "
            f"{len(missing) - 1} more are not there: start from a pre-trained model"
        )
    model.load_state_dict(state, assign=True)
    return model


def _begin(name: str, shape: torch.Size, std: float) -> Tensor:
    """Give a parameter that a task adds (BLIP.md 1.3)."""
    if name == "temperature":
        return torch.tensor(TEMPERATURE)
    return torch.zeros(shape) if name.endswith("bias") else torch.randn(shape) * std


def _shared_names(model: Blip) -> dict[str, str]:
    """Map every name of a parameter to the name under which it is stored."""
    first: dict[int, str] = {}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in every}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{error}: not a model of this program") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: must hold a mapping, got {type(document).__name__}")
    return document


def _build(path: Path, document: dict[str, Any]) -> Blip:
    """Build the stored model without memory for its weights."""
    try:
        if document["parts"] not in get_args(Parts):
            raise ValueError(f"parts must be one of {get_args(Parts)}, got {document['parts']!r}")
        with torch.device("meta"):
            return Blip(
                config.Model.model_validate(document["model"]),
                document["image_size"],
                document["vocab_size"],
                SpecialTokens(**document["special"]),
                document["parts"],
            )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{path}: does not describe a model: {error}") from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged: {error}: fetch or make it anew") from None


def _check(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    faults = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    faults += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
    for name in sorted(expected.keys() & tensors.keys()):
        found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if found != wanted:
            faults.append(f"{name} of shape {found}, expected {wanted}")
    if faults:
        raise CheckpointError(f"{path}: does not fit its {CONFIG}: {'; '.join(faults)}")
