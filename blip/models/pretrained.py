"""Weights that pre-training begins with: a supervised ViT and BERT (BLIP.md 1.2-1.4)."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from blip import config
from blip.errors import CheckpointError, ConfigError
from blip.hub import hub_file
from blip.models.blip import Blip
from blip.models.convert import official_names
from blip.models.tensors import check_tensors, read_safetensors, read_torch
from blip.models.vit import VisionTransformer, resize_position_embedding

log = logging.getLogger(__name__)

FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
NUM_ADDED_TOKENS = 2  # [DEC] and [ENC], behind BERT's

# What the files hold that BLIP has no place for; everything else must be used.
VISION_DROPPED = re.compile(r"(head|pre_logits\.fc)\.(weight|bias)")
TEXT_DROPPED = re.compile(
    r"bert\.pooler\.dense\.(weight|bias)|cls\.seq_relationship\.(weight|bias)"
    r"|bert\.embeddings\.(token_type_embeddings\.weight|position_ids)"
)
# A second name of a tensor, under which some files hold it too.
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def find_weights(model: config.Model) -> dict[str, Path]:
    """Find the files of the configured starting weights, on this machine or on the hub.

    Args:
        model: Its `vision_weights` (a file, a folder, or the name of a timm model) and `text_weights`
            (a file, a folder, or a BERT on the hub); `None` stands for random weights.

    Returns:
        The files by key of the configuration; no entry for random weights.

    Raises:
        ConfigError: There is no such file or model, or no network to fetch it over.
    """
    found = {}
    if model.vision_weights:
        setting = f"model.vision_weights {model.vision_weights!r}"
        found["vision_weights"] = _local_file(setting, model.vision_weights) or hub_file(
            setting, _timm_repository(setting, model.vision_weights), *FILES
        )
    if model.text_weights:
        setting = f"model.text_weights {model.text_weights!r}"
        found["text_weights"] = _local_file(setting, model.text_weights) or hub_file(
            setting, model.text_weights, *FILES
        )
    return found


def load_weights(model: Blip, weights: Mapping[str, Path]) -> None:
    """Put the weights that `find_weights` found into a model with the parts `pretrain`.

    Raises:
        CheckpointError: See `load_vision_weights` and `load_text_weights`.
    """
    if path := weights.get("vision_weights"):
        load_vision_weights(model.vision, path)
    if path := weights.get("text_weights"):
        load_text_weights(model, path)


def load_vision_weights(vision: VisionTransformer, path: Path) -> None:
    """Put the weights of a timm ViT into an image encoder; its classifier is dropped.

    The position embedding is resampled to the encoder's image size. The number of heads is not
    written in weights: the encoder's must be theirs.

    Args:
        vision: The encoder.
        path: A state dict, by itself or under the key `model` as DeiT's.

    Raises:
        CheckpointError: The file is damaged, or a tensor is missing, unexpected or misshapen.
    """
    tensors = _read_tensors(path)
    positions = tensors.get("pos_embed")
    if positions is not None and positions.ndim == 3 and _is_square(positions.shape[1] - 1):
        num_tokens = vision.position_embedding.shape[1]
        tensors["pos_embed"] = resize_position_embedding(positions.float(), num_tokens)
    places = {
        official_names(f"vision.{name}")[0].removeprefix("visual_encoder."): [parameter.detach()]
        for name, parameter in vision.named_parameters()
    }
    _place(path, tensors, places, VISION_DROPPED)


def load_text_weights(model: Blip, path: Path) -> None:
    """Put the weights of a BERT into both text stacks and the language head (BLIP.md 1.3).

    The cross-attentions and the embeddings of [DEC] and [ENC] stay as they were drawn, the biases
    of these two 0. BERT's segment embedding, pooler and next-sentence head are dropped.

    Args:
        model: With the parts `pretrain`.
        path: A BERT with or without its masked-language head, as `transformers` writes it today or
            wrote it first (norms with gamma and beta). Without, the language head stays as drawn.

    Raises:
        CheckpointError: The file is damaged, its vocabulary has another size, or a tensor is
            missing, unexpected or misshapen.
    """
    tensors = _bert_names(_read_tensors(path))
    for twin, name in TIED.items():
        if twin in tensors and not torch.equal(
            tensors.pop(twin), tensors.get(name, torch.empty(0))
        ):
            raise CheckpointError(f"{path}: {twin} is not equal to {name}: BLIP ties them")
    words = tensors.get("bert.embeddings.word_embeddings.weight")
    if words is not None and len(words) + NUM_ADDED_TOKENS != model.vocab_size:
        raise CheckpointError(
            f"{path}: embeds {len(words)} tokens, and the tokenizer has "
            f"{model.vocab_size - NUM_ADDED_TOKENS}: let tokenizer.vocabulary name the vocabulary "
            "of these weights"
        )
    places = _text_places(model)
    if not any(name.startswith("cls.predictions.") for name in tensors):
        log.warning("%s has no masked-language head: the language head starts at random", path)
        places = {name: place for name, place in places.items() if name.startswith("bert.")}
    _place(path, tensors, places, TEXT_DROPPED)


def _local_file(setting: str, name: str) -> Path | None:
    """Find a file, or that in a folder; `None` if the name can only be that of a model."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for file in FILES:
            if (path / file).is_file():
                return path / file
        raise ConfigError(f"{setting}: the folder has no {' or '.join(FILES)}")
    if path.is_absolute() or path.suffix in SUFFIXES:
        raise ConfigError(f"{setting}: no such file: name one that exists, or a model on the hub")
    return None


def _timm_repository(setting: str, name: str) -> str:
    """Give the repository on the hub of a timm model such as `deit_base_patch16_224`."""
    import timm

    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag behind the dot
        raise ConfigError(f"{setting}: {error}") from None
    if found is None or not found.hf_hub_id:
        raise ConfigError(
            f"{setting}: is no file here, and timm has no weights of that name: "
            "name a file, or one that timm.list_pretrained() gives"
        )
    return str(found.hf_hub_id)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)


def _is_square(number: int) -> bool:
    return math.isqrt(max(number, 0)) ** 2 == number


def _bert_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a BERT as those of one with a masked-language head are named today."""
    prefix = "" if any(name.startswith("bert.") for name in tensors) else "bert."
    return {
        prefix + name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): tensor
        for name, tensor in tensors.items()
    }


def _text_places(model: Blip) -> dict[str, list[Tensor]]:
    """Give the parts of parameters that each tensor of BERT goes to.

    They are in both stacks for the self-attention, once for what the stacks share.
    """
    places: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        module = name.split(".")[0]
        if module not in ("text_encoder", "text_decoder", "language_head") or ".cross_" in name:
            continue
        counts_tokens = name in ("text_encoder.embeddings.words.weight", "language_head.bias")
        place = parameter.detach()[:-NUM_ADDED_TOKENS] if counts_tokens else parameter.detach()
        names = official_names(name)
        for official, part in zip(names, place.chunk(len(names)), strict=True):
            theirs = re.sub(r"^text_encoder\.|^text_decoder\.bert\.", "bert.", official)
            places.setdefault(theirs.removeprefix("text_decoder."), []).append(part)
    return places


@torch.no_grad()
def _place(
    path: Path,
    tensors: Mapping[str, Tensor],
    places: Mapping[str, Sequence[Tensor]],
    dropped: re.Pattern[str],
) -> None:
    """Copy every tensor to its places, or none."""
    kept = {name: tensor for name, tensor in tensors.items() if not dropped.fullmatch(name)}
    expected = {name: parts[0] for name, parts in places.items()}
    check_tensors(f"{path}: does not fit the configured model", kept, expected)
    for name, parts in places.items():
        for part in parts:
            part.copy_(kept[name])
