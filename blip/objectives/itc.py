"""Image-text contrast (ITC): what belongs together shall be nearest (BLIP.md 2.1, ALBEF eq. 6)."""

import torch
from torch import Tensor
from torch.nn import functional


def itc_loss(
    image_logits: Tensor, text_logits: Tensor, image_targets: Tensor, text_targets: Tensor
) -> Tensor:
    """Average the soft cross-entropies of images over texts and of texts over images.

    Args:
        image_logits: (B, C) similarities of images with candidate texts, over the temperature.
        text_logits: (B, C) of texts with candidate images.
        image_targets: (B, C) distribution over the texts of each image.
        text_targets: (B, C) distribution over the images of each text.
    """
    image_loss = functional.cross_entropy(image_logits, image_targets)
    text_loss = functional.cross_entropy(text_logits, text_targets)
    return (image_loss + text_loss) / 2


def soft_targets(momentum_logits: Tensor, hard: Tensor, alpha: float) -> Tensor:
    """Mix the momentum twin's belief into the hard targets: a caption may fit another image too.

    Args:
        momentum_logits: (B, C) the twin's similarities over the temperature.
        hard: (B, C) one-hot, or even over the candidates of one image.
        alpha: Weight of the twin's softmax.
    """
    return torch.lerp(hard, momentum_logits.softmax(dim=1), alpha)


def hard_targets(image_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """Spread (B, C) targets evenly over all candidates of the same image (BLIP.md 5.1).

    Args:
        image_ids: (B,).
        candidate_ids: (C,), each of `image_ids` among them.
    """
    same = (image_ids[:, None] == candidate_ids[None, :]).float()
    return same / same.sum(dim=1, keepdim=True)
