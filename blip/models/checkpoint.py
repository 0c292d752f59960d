"""Models on disk: weights in safetensors beside a config.json that says how to build them."""

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
from blip.models.blip import Blip, Parts
from blip.models.vit import resize_position_embedding

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
POSITIONS = "vision.position_embedding"


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
        parts: Take only these parts of a pre-trained model; `None` takes what is there.
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
    if parts != stored.parts and stored.parts != "pretrain":
        raise CheckpointError(
            f"{path}: holds the parts {stored.parts!r}, not {parts!r}: "
            "start from a pre-trained model"
        )
    with torch.device("meta"):
        model = Blip(
            stored.config, image_size or stored.image_size, stored.vocab_size, stored.special, parts
        )
    num_tokens = model.vision.position_embedding.shape[1]
    tensors[POSITIONS] = resize_position_embedding(tensors[POSITIONS].float(), num_tokens)
    placed = {name: t.to(device, torch.float32, copy=True) for name, t in tensors.items()}
    model.load_state_dict({n: placed[names[n]] for n in model.state_dict()}, assign=True)
    return model


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
