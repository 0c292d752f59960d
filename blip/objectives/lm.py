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
    counted = _counted(mask, prompt_length)
    return functional.cross_entropy(
        predict(hidden[counted]), token_ids[:, 1:][counted], label_smoothing=label_smoothing
    )


def text_losses(
    hidden: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    predict: Callable[[Tensor], Tensor],
    label_smoothing: float,
    prompt_length: int = 0,
) -> Tensor:
    """Sum the next-token cross-entropy over the counted tokens of each text: (B,).

    The arguments are those of `lm_loss`. The reference smooths labels in the ranking of answers
    too (BLIP.md 1.3), so that the negative of a sum is not quite a log-probability.
    """
    counted = _counted(mask, prompt_length)
    losses = functional.cross_entropy(
        predict(hidden[counted]),
        token_ids[:, 1:][counted],
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return losses.new_zeros(len(token_ids)).index_add(0, counted.nonzero()[:, 0], losses)


def count_tokens(mask: Tensor, prompt_length: int = 0) -> Tensor:
    """Count the tokens that `lm_loss` is a mean of: a scalar."""
    return _counted(mask, prompt_length).sum()


def _counted(mask: Tensor, prompt_length: int) -> Tensor:
    """Say which of the (B, L - 1) predictions are learned."""
    places = torch.arange(1, mask.shape[1], device=mask.device)
    return mask[:, 1:].bool() & (places >= prompt_length)
