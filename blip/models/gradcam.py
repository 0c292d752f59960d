"""Where a model looks for a word: Grad-CAM of the image-text match (BLIP.md 7)."""

from typing import NamedTuple

import torch
from torch import Tensor

from blip.models.attention import CrossAttention, join_heads
from blip.models.blip import Blip


class GradCam(NamedTuple):
    """Heat maps of B pairs over the P x P patches of the image.

    Attributes:
        per_token: (B, L, P, P) of every token, 0 at padding.
        mean: (B, P, P) mean over the words: every token but the first and the last.
        attention: (B, H, L, N) probabilities of the cross-attention.
        gradient: (B, H, L, N) of the matched logit with respect to them.
    """

    per_token: Tensor
    mean: Tensor
    attention: Tensor
    gradient: Tensor


def grad_cam(model: Blip, images: Tensor, token_ids: Tensor, mask: Tensor, layer: int) -> GradCam:
    """Weigh the attention of a layer by what it contributes to the match.

    Args:
        model: A model that matches, in evaluation mode.
        images: (B, 3, S, S).
        token_ids: (B, L) `[CLS] ... [SEP]` and padding; position 0 is read as `[ENC]`.
        mask: (B, L), nonzero at tokens.
        layer: Of the text encoder, from 0; BLIP's demonstrations look at the 8th of 12.

    Raises:
        ValueError: There is no such layer.
    """
    layers = model.text_encoder.layers
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer {layer} of a text encoder with the layers 0 to {len(layers) - 1}")
    attended: list[Tensor] = []

    def attend(
        module: CrossAttention, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor
    ) -> Tensor:
        """Attend once more, step by step: the fused kernel does not show the probabilities."""
        hidden, key_value, _ = inputs
        query, key, value = module.split(hidden, key_value)
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        attended.append(scores.softmax(dim=-1))
        return module.output(join_heads(attended[0] @ value).view_as(hidden))

    watched = layers[layer].get_submodule("cross_attention")
    hook = watched.register_forward_hook(attend)
    try:
        with torch.enable_grad():
            memory = model.project_images(model.encode_image(images))
            hidden = model.encode_pairs(token_ids, mask, memory)
            matched = model.match_head(hidden[:, 0])[:, 1].sum()
            (gradient,) = torch.autograd.grad(matched, attended)
    finally:
        hook.remove()
    attention = attended[0].detach()
    maps = (attention * gradient.clamp(min=0)).mean(dim=1)[:, :, 1:]  # without the CLS token
    side = round(maps.shape[-1] ** 0.5)
    per_token = (maps * mask[:, :, None]).reshape(*mask.shape, side, side)
    words = mask.clone()
    words[:, 0] = 0
    words.scatter_(1, mask.sum(dim=1, keepdim=True) - 1, 0)
    total = (per_token * words[:, :, None, None]).sum(dim=1)
    mean = total / words.sum(dim=1).clamp(min=1)[:, None, None]
    return GradCam(per_token, mean, attention, gradient)
