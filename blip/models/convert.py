"""The names of the reference's checkpoints (BLIP.md 6.2) for the parameters of ours."""

from collections.abc import Mapping

import torch
from torch import Tensor

from blip.errors import CheckpointError
from blip.models.blip import Blip

# Ours is the concatenation of several of theirs where a tuple stands.
Names = Mapping[str, str | tuple[str, ...]]

VISION: Names = {
    "patch_embedding": "patch_embed.proj",
    "cls_token": "cls_token",
    "position_embedding": "pos_embed",
    "norm": "norm",
}
VISION_BLOCK: Names = {
    "attention_norm": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.output": "attn.proj",
    "mlp_norm": "norm2",
    "mlp_up": "mlp.fc1",
    "mlp_down": "mlp.fc2",
}
TEXT: Names = {
    "embeddings.words": "embeddings.word_embeddings",
    "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
TEXT_LAYER: Names = {
    "self_attention.qkv": (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ),
    "self_attention.output": "attention.output.dense",
    "self_norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key_value": ("crossattention.self.key", "crossattention.self.value"),
    "cross_attention.output": "crossattention.output.dense",
    "cross_norm": "crossattention.output.LayerNorm",
    "mlp_up": "intermediate.dense",
    "mlp_down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
LANGUAGE_HEAD: Names = {
    "transform": "transform.dense",
    "norm": "transform.LayerNorm",
    "bias": "bias",
}
# Our module: theirs, the names inside, the prefix of a numbered layer and the names inside one.
STACKS: Mapping[str, tuple[str, Names, str, Names]] = {
    "vision": ("visual_encoder", VISION, "blocks", VISION_BLOCK),
    "text_encoder": ("text_encoder", TEXT, "encoder.layer", TEXT_LAYER),
    "text_decoder": ("text_decoder.bert", TEXT, "encoder.layer", TEXT_LAYER),
    "language_head": ("text_decoder.cls.predictions", LANGUAGE_HEAD, "", {}),
}
HEADS: Mapping[str, str] = {
    "image_projection": "vision_proj",
    "text_projection": "text_proj",
    "match_head": "itm_head",
    "temperature": "temp",
}


def official_names(name: str, twin: bool = False) -> tuple[str, ...]:
    """Give the reference's names of a parameter of `Blip`.

    Args:
        name: Ours, as in `Blip.state_dict()`.
        twin: Name the momentum copy instead.

    Returns:
        One name, or those whose tensors, concatenated along axis 0, make ours.
    """
    top, _, rest = name.partition(".")
    suffix = "_m" if twin else ""
    if top in HEADS:
        return (f"{HEADS[top]}{suffix}.{rest}".rstrip("."),)
    module, inside, layers, inside_layer = STACKS[top]
    parts = rest.split(".")
    if parts[0] in ("blocks", "layers"):
        prefix = f"{module}{suffix}.{layers}.{parts[1]}."
        inside, parts = inside_layer, parts[2:]
    else:
        prefix = f"{module}{suffix}."
    whole = ".".join(parts)
    # A bare parameter is named itself; one of a layer, by its layer and then weight or bias.
    stem, leaf = (whole, "") if whole in inside else (".".join(parts[:-1]), f".{parts[-1]}")
    theirs = inside[stem]
    return tuple(f"{prefix}{t}{leaf}" for t in ([theirs] if isinstance(theirs, str) else theirs))


def from_official(model: Blip, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Give the state of a model from tensors under the reference's names.

    Args:
        model: Says which parameters are wanted.
        tensors: May hold more, such as the momentum twin.
        source: Where they come from, for the error.

    Raises:
        CheckpointError: Some are missing; they are named.
    """
    wanted = {name: official_names(name) for name in model.state_dict()}
    missing = sorted(t for names in wanted.values() for t in names if t not in tensors)
    if missing:
        raise CheckpointError(f"{source}: missing {', '.join(missing)}")
    return {
        ours: torch.cat([tensors[t] for t in names]) if len(names) > 1 else tensors[names[0]]
        for ours, names in wanted.items()
    }
