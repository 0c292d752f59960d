"""How given pairs of images and texts match, by the matching head and by the cosine."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip.config import Evaluate
from blip.models.blip import Blip
from blip.models.device import autocast
from blip.models.matching import Texts, embed_texts, match_texts
from blip.progress import track

Floats = NDArray[np.float64]


class PairScores(NamedTuple):
    """The scores of P pairs.

    Attributes:
        itm: (P) log-odds of a match: they rise with the probability, and do not saturate.
        itc: (P) cosine of the embeddings.
    """

    itm: Floats
    itc: Floats


@torch.inference_mode()
def score_pairs(
    model: Blip,
    images: Iterable[Tensor],
    texts: Texts,
    rows: NDArray[np.int64],
    owner: NDArray[np.int64],
    settings: Evaluate,
) -> PairScores:
    """Score pairs, one batch of images after the other.

    Args:
        model: With the parts that match.
        images: Batches (B, 3, S, S) of all images, in their order.
        texts: T texts.
        rows: (P) the text of each pair.
        owner: (P) the image of each pair, rising.
        settings: Batch size and precision.

    Returns:
        The scores, in the order of the pairs.
    """
    device, size = model.match_head.weight.device, settings.batch_size
    itm, itc = np.empty(len(rows)), np.empty(len(rows))
    with autocast(device, settings.precision):
        embeds = embed_texts(model, texts, size)
    first = 0
    total = int(owner[-1]) + 1 if len(owner) else 0
    for pixels in track(images, "matching", -(-total // size), "batches"):
        here = slice(*np.searchsorted(owner, [first, first + len(pixels)]))
        wanted = torch.from_numpy(rows[here])
        index = torch.from_numpy(owner[here] - first).to(device)
        with autocast(device, settings.precision):
            tokens = model.encode_image(pixels.to(device))
            memory = model.project_images(tokens)
            logits = match_texts(model, texts, wanted, memory, index, size)
        cosines = (model.embed_image(tokens)[index] * embeds[wanted.to(device)]).sum(dim=1)
        itm[here] = (logits[:, 1] - logits[:, 0]).double().cpu().numpy()
        itc[here] = cosines.double().cpu().numpy()
        first += len(pixels)
    return PairScores(itm, itc)
