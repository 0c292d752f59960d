"""Similarity and match scores of many texts with many images, each text read at its own length."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blip.models.blip import Blip
from blip.models.med import Memory


@dataclass(frozen=True)
class Texts:
    """T tokenised texts.

    Attributes:
        token_ids: (T, L) int64, `[CLS] ... [SEP]` and padding on the right.
        mask: (T, L), 1 at tokens.
    """

    token_ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)

    def batches(self, rows: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give the texts of `rows` (P,), the shortest first, padded to the longest of their batch.

        Yields:
            Places within `rows` (b,), token ids (b, l), mask (b, l).
        """
        if not len(rows):
            return
        lengths = self.mask.sum(1)[rows]
        for places in torch.split(torch.argsort(lengths, stable=True), size):
            longest = int(lengths[places[-1]])
            chosen = rows[places]
            yield places, self.token_ids[chosen, :longest], self.mask[chosen, :longest]


@torch.inference_mode()
def embed_texts(model: Blip, texts: Texts, batch_size: int) -> Tensor:
    """Give the (T, E) unit vectors of texts."""
    device = model.match_head.weight.device
    embeds = torch.empty(len(texts), model.text_projection.out_features, device=device)
    for places, ids, mask in texts.batches(torch.arange(len(texts)), batch_size):
        hidden = model.encode_text(ids.to(device), mask.to(device), pooled=True)
        embeds[places.to(device)] = model.embed_text(hidden)
    return embeds


@torch.inference_mode()
def match_texts(
    model: Blip,
    texts: Texts,
    rows: Tensor,
    memory: Memory,
    image_index: Tensor | None,
    batch_size: int,
) -> Tensor:
    """Judge pairs of texts and images.

    Args:
        model: With the retrieval parts.
        texts: T texts.
        rows: (P,) the text of each pair.
        memory: `Blip.project_images` of B images.
        image_index: (P,) the image of each pair; `None` where there is one image, which is then not
            copied for every text.
        batch_size: Pairs at once.

    Returns:
        (P, 2) logits, index 1 for a match.
    """
    device = model.match_head.weight.device
    logits = torch.empty(len(rows), 2, device=device)
    for places, ids, mask in texts.batches(rows, batch_size):
        images = None if image_index is None else image_index[places].to(device)
        logits[places.to(device)] = model.match(
            ids.to(device), mask.to(device), memory, images
        ).float()
    return logits
