"""The states of the reference's checkpoints (BLIP.md 6.2) for ours, and back.

Beside a model stands its momentum, where it has one: the state of `MomentumContrast`, which are
`twin.*` under our names and the four buffers of `queue.*`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from blip.models.blip import Blip
from blip.models.momentum import NO_IMAGE, FeatureQueue
from blip.models.tensors import check_tensors

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
    "cross_attention.first.query": "crossattention.self0.query",
    "cross_attention.first.key_value": ("crossattention.self0.key", "crossattention.self0.value"),
    "cross_attention.first.output": "crossattention.output.dense0",
    "cross_attention.second.query": "crossattention.self1.query",
    "cross_attention.second.key_value": ("crossattention.self1.key", "crossattention.self1.value"),
    "cross_attention.second.output": "crossattention.output.dense1",
    "cross_attention.merge": "crossattention.output.merge_layer",
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
CLASSIFIER: Names = {"hidden": "0", "output": "2"}
# Our module: theirs, the names inside, the prefix of a numbered layer and the names inside one.
STACKS: Mapping[str, tuple[str, Names, str, Names]] = {
    "vision": ("visual_encoder", VISION, "blocks", VISION_BLOCK),
    "text_encoder": ("text_encoder", TEXT, "encoder.layer", TEXT_LAYER),
    "text_decoder": ("text_decoder.bert", TEXT, "encoder.layer", TEXT_LAYER),
    "language_head": ("text_decoder.cls.predictions", LANGUAGE_HEAD, "", {}),
    "classifier": ("cls_head", CLASSIFIER, "", {}),
}
HEADS: Mapping[str, str] = {
    "image_projection": "vision_proj",
    "text_projection": "text_proj",
    "match_head": "itm_head",
    "temperature": "temp",
}
TWIN = ("vision", "text_encoder", "image_projection", "text_projection")
HAS_MOMENTUM = ("pretrain", "retrieval")
QUEUE_SIZE = 57600  # of every released model
_POSITIONS = "embeddings.position_embeddings.weight"


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


def to_official(model: Blip, momentum: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Give the whole state of a model under the reference's names, as views where there can be.

    Args:
        model: Of any parts; on the meta device, the names and shapes are given.
        momentum: Its twin and queue; `None` leaves them out.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        state |= _split(tensor, official_names(name))
    for name, tensor in (momentum or {}).items():
        if name.startswith("twin."):
            state |= _split(tensor, official_names(name.removeprefix("twin."), twin=True))
    if momentum is not None:
        state |= _official_queue(model, momentum)
    return state | derived(state)


def derived(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give what the reference stores although the rest of its state determines it.

    These are the position ids, and the vocabulary projection, tied to the word embedding.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_POSITIONS):
            ids = torch.arange(len(tensor), device=tensor.device)[None]
            made[f"{name.removesuffix(_POSITIONS)}embeddings.position_ids"] = ids
    head = "text_decoder.cls.predictions"
    tied = {
        f"{head}.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
        f"{head}.decoder.bias": f"{head}.bias",
    }
    return made | {name: state[source] for name, source in tied.items() if source in state}


def from_official(model: Blip, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Give the state of a model from tensors under the reference's names.

    Args:
        model: Says which parameters are wanted, and their shapes.
        tensors: May hold more, such as the momentum twin.
        source: Where they come from, for the error.

    Raises:
        CheckpointError: Some are missing or of another shape; they are named.
    """
    wanted = {name: official_names(name) for name in model.state_dict()}
    expected: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        expected |= _split(tensor, wanted[name])
    found = {name: tensors[name] for name in expected if name in tensors}
    check_tensors(source, found, expected)
    return {name: _joined(found, theirs) for name, theirs in wanted.items()}


def momentum_from_official(model: Blip, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the momentum of a model from the reference's, whose presence has been checked."""
    momentum = {
        f"twin.{name}": _joined(tensors, official_names(name, twin=True))
        for name in model.state_dict()
        if name.split(".")[0] in TWIN
    }
    images, pretrain = tensors["image_queue"].T.contiguous(), model.parts == "pretrain"
    ids = torch.full((len(images),), NO_IMAGE) if pretrain else tensors["idx_queue"][0]
    return momentum | {
        "queue.images": images,
        "queue.texts": tensors["text_queue"].T.contiguous(),
        "queue.image_ids": ids,
        "queue.position": tensors["queue_ptr" if pretrain else "ptr_queue"][0],
    }


def new_momentum(model: Blip, queue_size: int = QUEUE_SIZE) -> dict[str, Tensor]:
    """Give the momentum that training starts with: the weights themselves, and a queue of noise.

    The queue stands on torch's default device.
    """
    state = model.state_dict()
    twin = {f"twin.{name}": t for name, t in state.items() if name.split(".")[0] in TWIN}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # and not those of GPUs, which nothing is drawn from
        queue = FeatureQueue(model.config.embed_size, queue_size)
    return twin | {f"queue.{name}": tensor for name, tensor in queue.state_dict().items()}


def _official_queue(model: Blip, momentum: Mapping[str, Tensor]) -> dict[str, Tensor]:
    position = momentum["queue.position"].view(1)
    queue = {
        "image_queue": momentum["queue.images"].T.contiguous(),
        "text_queue": momentum["queue.texts"].T.contiguous(),
    }
    if model.parts == "pretrain":
        return queue | {"queue_ptr": position}
    return queue | {"idx_queue": momentum["queue.image_ids"][None], "ptr_queue": position}


def _split(tensor: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    return dict(zip(names, tensor.chunk(len(names)) if len(names) > 1 else [tensor], strict=True))


def _joined(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    return torch.cat([tensors[t] for t in names]) if len(names) > 1 else tensors[names[0]]
