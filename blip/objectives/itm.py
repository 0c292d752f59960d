"""Image-text matching (ITM): tell true pairs from hard negatives (BLIP.md 2.1, step 7)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

NONE = -1
IGNORED = -100


class Negatives(NamedTuple):
    """The negatives of B pairs, as indices into the candidates; `NONE` where a pair has none.

    Attributes:
        images: (B,) a wrong image for each text.
        texts: (B,) a wrong text for each image.
    """

    images: Tensor
    texts: Tensor


def itm_loss(logits: Tensor, negatives: Negatives) -> tuple[Tensor, Tensor]:
    """Give the cross-entropy over matching pairs and negatives, and the accuracy.

    Args:
        logits: (3B, 2) of B matching pairs, of B texts with negative images, of B images with
            negative texts.
        negatives: What was drawn; rows without a negative do not count.
    """
    wrong = torch.cat([negatives.images, negatives.texts])
    labels = torch.cat([torch.ones_like(negatives.images), (wrong == NONE) * IGNORED])
    counted = labels != IGNORED
    hits = (logits.detach().argmax(dim=1) == labels) & counted
    loss = functional.cross_entropy(logits, labels, ignore_index=IGNORED)
    return loss, hits.sum() / counted.sum()


def negative_weights(logits: Tensor, same: Tensor, floor: float, uniform: bool) -> Tensor:
    """Weigh the candidates for a negative: the more similar, the harder, the likelier.

    Args:
        logits: (B, C) similarities over the temperature.
        same: (B, C) true where a candidate belongs to the pair's own image, and so is no negative.
        floor: Added to the probabilities.
        uniform: Weigh all alike (the remedy for an ITM loss that stays at 0.63).

    Returns:
        (B, C) weights, not normalised, 0 at `same`.
    """
    weights = torch.ones_like(logits) if uniform else logits.softmax(dim=1) + floor
    return weights.masked_fill(same, 0.0)


def draw_negatives(image_weights: Tensor, text_weights: Tensor) -> Negatives:
    """Draw one wrong image for each text and one wrong text for each image from (B, C) weights."""
    return Negatives(images=_draw(image_weights), texts=_draw(text_weights))


def _draw(weights: Tensor) -> Tensor:
    possible = weights.sum(dim=1) > 0
    # A row without a candidate (a batch of a single image) would be refused: draw anything, then
    # say so.
    drawn = torch.multinomial(torch.where(possible[:, None], weights, 1.0), 1).squeeze(1)
    return torch.where(possible, drawn, NONE)
