"""Models on disk: weights in safetensors beside a config.json that says how to build them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from blip import config
from blip.batch import SpecialTokens
from blip.data.text import VOCABULARY, Tokenizer, find_vocabulary
from blip.errors import CheckpointError, ConfigError, DataError
from blip.files import atomic_directory, read_json, write_json, write_text
from blip.models.blip import TEMPERATURE, Blip, Parts
from blip.models.convert import new_momentum
from blip.models.huggingface import read_huggingface, write_huggingface
from blip.models.salesforce import (
    NO_HEADS,
    Checkpoint,
    Heads,
    read_salesforce,
    write_salesforce,
)
from blip.models.tensors import check_tensors, read_safetensors, read_torch, write_safetensors
from blip.models.vit import resize_position_embedding

WEIGHTS = "model.safetensors"
MOMENTUM = "momentum.safetensors"
CONFIG = "config.json"
POSITIONS = "vision.position_embedding"
DEFAULT_VOCABULARY = "bert-base-uncased"  # of every released model

Kind = Literal["blip", "salesforce", "huggingface"]
# What a task adds to a pre-trained model. The decoder of `vqa` reads a question, whose states are
# of another width than the tokens of ViT-L.
_ADDED: Mapping[Parts, str] = {
    "retrieval": r"^temperature$",
    "nlvr": r"^classifier\.|\.cross_attention\.merge\.",
    "vqa": r"^text_decoder\..*\.cross_attention\.key_value\.",
}
_STREAM = re.compile(r"(?<=cross_attention\.)(first|second)\.")


def save_model(model: Blip, out: Path, momentum: Mapping[str, Tensor] | None = None) -> None:
    """Write `model.safetensors` and `config.json` into a folder; equal weights give equal bytes.

    A parameter that two stacks share is written once, under its first name.

    Args:
        model: The model.
        out: The folder.
        momentum: Its twin and queue, the state of `MomentumContrast`, for `momentum.safetensors`.
    """
    write_safetensors(dict(model.named_parameters()), out / WEIGHTS)
    if momentum is not None:
        write_safetensors(momentum, out / MOMENTUM)
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
    drop_path: float | None = None,
) -> Blip:
    """Read a model that `save_model` wrote.

    Args:
        path: The folder.
        parts: Make these parts of it, as fine-tuning begins; `None` takes what is there. What a
            task adds begins random, and both image streams of `nlvr` as the one there is.
        image_size: Side of the images the model shall read; the position embedding is resampled to
            it.
        device: Where to put it.
        drop_path: Of the image encoder, where a task wants another than the model has.

    Raises:
        CheckpointError: A file is missing or damaged, the parts are not there, or a tensor is
            missing, unexpected or of another shape; the tensors are named.
    """
    stored = _build(path / CONFIG, _read_config(path / CONFIG))
    names = _shared_names(stored)
    tensors = read_safetensors(path / WEIGHTS)
    expected = {name: stored.get_parameter(name) for name in set(names.values())}
    check_tensors(f"{path / WEIGHTS}: does not fit its {CONFIG}", tensors, expected)
    parts = parts or stored.parts
    sizes = stored.config
    if drop_path is not None:
        vision = sizes.vision.model_copy(update={"drop_path": drop_path})
        sizes = sizes.model_copy(update={"vision": vision})
    with torch.device("meta"):
        model = Blip(
            sizes, image_size or stored.image_size, stored.vocab_size, stored.special, parts
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


def load_momentum(path: Path, model: Blip) -> dict[str, Tensor] | None:
    """Read the twin and the queue beside a model, if there are any.

    Args:
        path: The folder.
        model: What was read from it, maybe for another image size: the twin's position embedding is
            resampled to that.

    Raises:
        CheckpointError: The file is damaged or does not fit.
    """
    if not (path / MOMENTUM).is_file():
        return None
    tensors = read_safetensors(path / MOMENTUM)
    positions = tensors.get(f"twin.{POSITIONS}", torch.empty(0))
    num_tokens = model.vision.position_embedding.shape[1]
    if positions.ndim == 3:
        tensors[f"twin.{POSITIONS}"] = resize_position_embedding(positions, num_tokens)
    queue_size = len(tensors.get("queue.image_ids", ()))
    with torch.device("meta"):
        expected = new_momentum(model, queue_size)
    check_tensors(f"{path / MOMENTUM}: does not fit the model", tensors, expected)
    return tensors


def read_checkpoint(
    path: Path, vocabulary: str | None = None, heads: Heads = NO_HEADS
) -> Checkpoint:
    """Read a checkpoint of any kind; its contents tell which.

    Args:
        path: A `.pth` of the reference, a folder of transformers', or one that `save_model` wrote.
        vocabulary: Its vocabulary, a file or the name of a model on the Hugging Face hub; `None`
            takes the `vocab.txt` beside it, or else BERT's.
        heads: Where the checkpoint does not tell, or tells wrong.

    Raises:
        CheckpointError: It is damaged or incomplete, of no known kind, or does not fit.
        ConfigError: There is no such vocabulary.
    """
    folder = path if path.is_dir() else path.parent
    if vocabulary is None and (folder / VOCABULARY).is_file():
        vocabulary = str(folder / VOCABULARY)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint: name a .pth file or a folder")
    # What is no checkpoint needs no vocabulary, and the hub may take its time to have none.
    document = _read_config(path / CONFIG) if path.is_dir() else read_torch(path)
    found = find_vocabulary(vocabulary or DEFAULT_VOCABULARY)
    if path.is_file():
        return read_salesforce(path, found, heads)
    if "text_config" in document:
        return read_huggingface(path, found, heads)
    if heads != NO_HEADS:
        raise ConfigError(
            f"{path / CONFIG}: tells the numbers of attention heads: do not give them"
        )
    model = load_model(path)
    text = Tokenizer(found)
    if (text.vocab_size, text.special) != (model.vocab_size, model.special):
        raise CheckpointError(
            f"{path}: has {model.vocab_size} token ids, but {found} gives {text.vocab_size}, or "
            "other special tokens: name the vocabulary it was trained with"
        )
    return Checkpoint(model, found, load_momentum(path, model))


def write_checkpoint(checkpoint: Checkpoint, out: Path, kind: Kind) -> list[str]:
    """Write a checkpoint of a kind: a `.pth` file or a folder, which appears whole or not at all.

    Returns:
        What the kind has no place for or had to be made, a sentence each.

    Raises:
        CheckpointError: The kind cannot hold this model.
        ConfigError: `out` is there already.
    """
    if out.exists():
        raise ConfigError(f"{out}: is there already: name another place, or remove it first")
    match kind:
        case "salesforce":
            return write_salesforce(checkpoint, out)
        case "huggingface":
            return write_huggingface(checkpoint, out)
        case "blip":
            with atomic_directory(out) as folder:
                save_model(checkpoint.model, folder, checkpoint.momentum)
                words = checkpoint.vocabulary.read_text(encoding="utf-8")
                write_text(folder / VOCABULARY, words)
            return []


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
