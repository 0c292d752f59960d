"""Checkpoints of Hugging Face transformers (BLIP.md 6.3): read as a model of ours, and written.

The text stacks bear the reference's names there, the image encoder others. What transformers
computes of a folder that is written here is what BLIP computes: its configuration says all that
the defaults of transformers have otherwise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from blip.data.text import VOCABULARY
from blip.errors import CheckpointError, DataError
from blip.files import atomic_directory, read_json, write_json, write_text
from blip.models import med, vit
from blip.models.blip import Blip, Parts
from blip.models.convert import derived, to_official
from blip.models.salesforce import Checkpoint, Heads, build
from blip.models.tensors import read_safetensors, read_torch, write_safetensors

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OLD_WEIGHTS = "pytorch_model.bin"
LABEL_SMOOTHING = 0.1  # of BLIP's language modelling, in evaluation too (BLIP.md 1.3)

CLASSES: Mapping[Parts, str] = {
    "captioning": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "matching": "BlipForImageTextRetrieval",
    "retrieval": "BlipForImageTextRetrieval",
}
# The reference's prefix, theirs; and within a block of the image encoder.
PREFIXES = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    ("visual_encoder.norm.", "vision_model.post_layernorm."),
)
BLOCK = (
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)
# Where a configuration is silent, transformers takes these.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "vision_config": {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
    "text_config": {"num_attention_heads": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
}
NORM_EPS = {"vision_config": vit.NORM_EPS, "text_config": med.NORM_EPS}


def huggingface_name(official: str) -> str:
    """Give what transformers calls a tensor of the reference."""
    for ours, theirs in PREFIXES:
        if official.startswith(ours):
            return theirs + _replaced(official.removeprefix(ours), BLOCK)
    return official


def official_name(huggingface: str) -> str:
    """Give what the reference calls a tensor of transformers."""
    for theirs, ours in PREFIXES:
        if huggingface.startswith(ours):
            inside = tuple((b, a) for a, b in BLOCK)
            return theirs + _replaced(huggingface.removeprefix(ours), inside)
    return huggingface


def read_huggingface(folder: Path, vocabulary: Path, heads: Heads) -> Checkpoint:
    """Read a folder that `save_pretrained` of one of transformers' BLIP classes wrote.

    Args:
        folder: With `config.json` and the weights: one file, shards, or an old `.bin`.
        vocabulary: Its `vocab.txt`.
        heads: Instead of those that its configuration names.

    Raises:
        CheckpointError: It is damaged, of another class, or does not fit.
    """
    settings = _read_config(folder / CONFIG)
    vision, text = settings["vision_config"], settings["text_config"]
    notes = []
    for name, section in settings.items():
        if section["hidden_act"] != "gelu":
            raise CheckpointError(
                f"{folder / CONFIG}: {name}.hidden_act is {section['hidden_act']!r}: BLIP has gelu"
            )
        if section["layer_norm_eps"] != NORM_EPS[name]:
            notes.append(
                f"{name}.layer_norm_eps: {section['layer_norm_eps']} in {folder / CONFIG}, but "
                f"BLIP is trained with {NORM_EPS[name]}, which is computed with here"
            )
    heads = Heads(
        heads.vision or vision["num_attention_heads"], heads.text or text["num_attention_heads"]
    )
    tensors = {official_name(name): tensor for name, tensor in _read_weights(folder).items()}
    checkpoint = build(tensors, vocabulary, heads, str(folder), named=huggingface_name)
    checkpoint.notes.extend(notes)
    return checkpoint


def write_huggingface(checkpoint: Checkpoint, out: Path) -> list[str]:
    """Write a folder that transformers loads: the class of the model's parts and its processor.

    Returns:
        What of the model transformers has no place for, a sentence each.

    Raises:
        CheckpointError: It has no class for this model.
    """
    model, special = checkpoint.model, checkpoint.model.special
    _check_class(model)
    state = to_official(model, None)
    weights = {
        huggingface_name(name): tensor
        for name, tensor in state.items()
        if name not in derived(state) and name != "temp"
    }
    added = {
        str(token): {
            "content": content,
            "special": True,
            "lstrip": False,
            "rstrip": False,
            "single_word": False,
            "normalized": False,
        }
        for content, token in (("[DEC]", special.dec), ("[ENC]", special.enc))
    }
    with atomic_directory(out) as folder:
        write_safetensors(weights, folder / WEIGHTS, {"format": "pt"})
        write_json(folder / CONFIG, _config(model))
        write_text(folder / VOCABULARY, checkpoint.vocabulary.read_text(encoding="utf-8"))
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": True,
                "model_max_length": model.config.text.max_positions,
                "added_tokens_decoder": added,
                "additional_special_tokens": ["[DEC]", "[ENC]"],
            },
        )
        write_json(
            folder / "preprocessor_config.json",
            {
                "processor_class": "BlipProcessor",
                "image_processor_type": "BlipImageProcessor",
                "size": {"height": model.image_size, "width": model.image_size},
            },
        )
    notes = []
    if model.parts == "retrieval":
        notes.append("temperature: left out, transformers has none")
    if checkpoint.momentum is not None:
        notes.append("momentum copies and queue: left out, transformers has none")
    return notes


def _check_class(model: Blip) -> None:
    if model.parts not in CLASSES:
        raise CheckpointError(
            f"transformers has no class for the parts {model.parts!r}: it has them for "
            f"{', '.join(CLASSES)}"
        )
    vision, text = model.config.vision.width, model.config.text.width
    if model.parts == "vqa" and vision != text:
        raise CheckpointError(
            f"transformers cannot hold this model: the parts 'vqa' need there the same width of "
            f"images, {vision}, and text, {text}"
        )


def _config(model: Blip) -> dict[str, Any]:
    vision, text, special = model.config.vision, model.config.text, model.special
    return {
        "model_type": "blip",
        "architectures": [CLASSES[model.parts]],
        "dtype": "float32",
        "image_text_hidden_size": model.config.embed_size,
        "projection_dim": model.config.embed_size,
        "label_smoothing": LABEL_SMOOTHING,
        "text_config": {
            "model_type": "blip_text_model",
            "vocab_size": model.vocab_size,
            "hidden_size": text.width,
            "encoder_hidden_size": vision.width,
            "intermediate_size": text.intermediate,
            "projection_dim": text.width,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "max_position_embeddings": text.max_positions,
            "hidden_act": "gelu",
            "layer_norm_eps": med.NORM_EPS,
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.dropout,
            "label_smoothing": LABEL_SMOOTHING,
            "is_decoder": True,
            "bos_token_id": special.dec,
            "eos_token_id": special.sep,
            "sep_token_id": special.sep,
            "pad_token_id": special.pad,
        },
        "vision_config": {
            "model_type": "blip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": vit.MLP_RATIO * vision.width,
            "projection_dim": model.config.embed_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "image_size": model.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "gelu",
            "layer_norm_eps": vit.NORM_EPS,
            "attention_dropout": 0.0,
        },
    }


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Give the sections of a configuration, complete with what is silently meant."""
    document = read_json(path)
    sections = {}
    for name, defaults in DEFAULTS.items():
        section = document.get(name) if isinstance(document, dict) else None
        if not isinstance(section, dict):
            raise CheckpointError(
                f"{path}: {name} is missing: is it of one of transformers' BLIPs?"
            )
        sections[name] = {**defaults, **section}
        heads = sections[name]["num_attention_heads"]
        if not isinstance(heads, int) or heads < 1:
            raise CheckpointError(f"{path}: {name}.num_attention_heads is {heads!r}, no number > 0")
    return sections


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    if (folder / OLD_WEIGHTS).is_file():
        return read_torch(folder / OLD_WEIGHTS)
    raise CheckpointError(f"{folder}: has no {WEIGHTS}, {INDEX} or {OLD_WEIGHTS}")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    path = folder / INDEX
    try:
        places = dict(read_json(path)["weight_map"])
        shards = sorted(set(places.values()))
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is no index of shards: {error}") from None
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{path}: names {shard!r}, which is not a file beside it")
        tensors |= read_safetensors(folder / shard)
    if tensors.keys() != places.keys():
        name = min(tensors.keys() ^ places.keys())
        raise CheckpointError(f"{path}: and its shards disagree about {name}: fetch them anew")
    return tensors


def _replaced(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name
