"""The typed batch that data makes and objectives read."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor


class SpecialTokens(NamedTuple):
    """Ids of the tokens with a meaning of their own (BLIP.md 1.1)."""

    pad: int
    cls: int
    sep: int
    dec: int
    enc: int


@dataclass(frozen=True)
class Batch:
    """B pairs.

    Attributes:
        images: (B, 3, S, S) float32, normalised.
        token_ids: (B, L) int64, `[CLS] ... [SEP]`, padded to the longest of the batch.
        attention_mask: (B, L) int64, 1 at tokens, 0 at padding.
        image_ids: (B,) int64, equal for pairs of one image.
    """

    images: Tensor
    token_ids: Tensor
    attention_mask: Tensor
    image_ids: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device) -> "Batch":
        """Move every tensor, without waiting where the memory is pinned."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return Batch(**moved)
