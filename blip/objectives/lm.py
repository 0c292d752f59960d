"""Language modelling (LM): the caption, token by token, given the image (BLIP.md 1.3)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def lm_loss(
    hidden: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    predict: Callable[[Tensor], Tensor],
    label_smoothing: float,
    prompt_length: int = 0,
) -> Tensor:
    """Average the next-token cross-entropy over the counted tokens of the batch.

    Args:
        hidden: (B, L - 1, W) decoder states of all tokens but the last.
        token_ids: (B, L) ids with padding on the right.
        mask: (B, L), nonzero at tokens.
        predict: Maps (..., W) to (..., V); called on the counted positions alone.
        label_smoothing: Weight of the uniform distribution over the vocabulary.
        prompt_length: Leading tokens that are given, not learned.
    """
    places = torch.arange(1, token_ids.shape[1], device=token_ids.device)
    counted = mask[:, 1:].bool() & (places >= prompt_length)
    logits = predict(hidden[counted])
    return functional.cross_entropy(
        logits, token_ids[:, 1:][counted], label_smoothing=label_smoothing
    )
