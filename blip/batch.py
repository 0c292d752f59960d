"""The typed batch that data makes and objectives read."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor


class SpecialTokens(NamedTuple):
    """Ids of the tokens with a meaning of their own (BLIP.md 1.1)."""

    pad: int
    cls: int
    sep: int
    dec: int
    enc: int


class _Rows:
    """A dataclass of tensors, whose first axis is the example."""

    def to(self, device: torch.device) -> Self:
        """Move every tensor, without waiting where the memory is pinned."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()}
        return type(self)(**moved)

    def split(self, parts: int) -> list[Self]:
        """Cut the examples into so many parts, of equal size or one less, in their order."""
        cut = {name: tensor.tensor_split(parts) for name, tensor in vars(self).items()}
        return [
            type(self)(**dict(zip(cut, values, strict=True)))
            for values in zip(*cut.values(), strict=True)
        ]


@dataclass(frozen=True)
class Batch(_Rows):
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


@dataclass(frozen=True)
class QuestionBatch(_Rows):
    """B questions about images, with A answers in all (BLIP.md 5.3).

    Attributes:
        images: (B, 3, S, S) float32, normalised.
        question_ids: (B, L) int64, `[CLS] ... [SEP]` and padding.
        question_mask: (B, L) int64, 1 at tokens.
        answer_ids: (A, M) int64, `[CLS] ... [SEP]` and padding.
        answer_mask: (A, M) int64.
        weights: (A,) float32, the share of people who gave the answer.
        questions: (A,) int64, the row of the question of each answer.
    """

    images: Tensor
    question_ids: Tensor
    question_mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    weights: Tensor
    questions: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def split(self, parts: int) -> list[Self]:
        """Cut the questions as other batches; the answers go with theirs."""
        batches = []
        for rows in torch.arange(len(self), device=self.images.device).tensor_split(parts):
            first, end = int(rows[0]), int(rows[-1]) + 1
            mine = (self.questions >= first) & (self.questions < end)
            batches.append(
                type(self)(
                    self.images[first:end],
                    self.question_ids[first:end],
                    self.question_mask[first:end],
                    self.answer_ids[mine],
                    self.answer_mask[mine],
                    self.weights[mine],
                    self.questions[mine] - first,
                )
            )
        return batches


@dataclass(frozen=True)
class StatementBatch(_Rows):
    """B statements about two images each (BLIP.md 5.4).

    Attributes:
        images: (B, 2, 3, S, S) float32, normalised.
        token_ids: (B, L) int64, `[CLS] ... [SEP]` and padding.
        attention_mask: (B, L) int64, 1 at tokens.
        labels: (B,) int64, 1 where the statement is true.
    """

    images: Tensor
    token_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]
