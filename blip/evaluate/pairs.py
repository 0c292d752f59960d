"""How given pairs of images and texts match, by the matching head and by the cosine."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blip.config import Evaluate
from blip.distributed import Team, rank
from blip.evaluate.features import Images, image_tokens
from blip.evaluate.network import require_finite
from blip.models.blip import Blip
from blip.models.device import autocast
from blip.models.matching import Texts, embed_texts, match_texts
from blip.progress import Progress

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
    images: Images,
    texts: Texts,
    rows: NDArray[np.int64],
    owner: NDArray[np.int64],
    settings: Evaluate,
) -> PairScores:
    """Score pairs, one batch of images after the other; processes of torchrun share the images.

    Args:
        model: With the parts that match.
        images: The images.
        texts: T texts.
        rows: (P) the text of each pair.
        owner: (P) the image of each pair, rising.
        settings: Batch size and precision.

    Returns:
        The scores, in the order of the pairs.

    Raises:
        CheckpointError: A score is not a number.
    """
    device, size, team = model.match_head.weight.device, settings.batch_size, Team()
    mine = team.share(len(images), size)
    with autocast(device, settings.precision):
        embeds = embed_texts(model, texts, size)
    found: list[Floats] = []  # (2, p) each
    progress = Progress("matching", len(mine), "images", shown=rank() == 0)
    for some, tokens in image_tokens(model, images, size, settings.precision, mine):
        here = slice(*np.searchsorted(owner, [some.start, some.stop]))
        wanted = torch.from_numpy(rows[here])
        index = torch.from_numpy(owner[here] - some.start).to(device)
        with autocast(device, settings.precision):
            memory = model.project_images(tokens)
            logits = match_texts(model, texts, wanted, memory, index, size)
        cosines = (model.embed_image(tokens)[index] * embeds[wanted.to(device)]).sum(dim=1)
        scores = torch.stack([logits[:, 1] - logits[:, 0], cosines.float()])
        require_finite(scores, "pairs")
        found.append(scores.cpu().double().numpy())
        progress.advance(len(some))
    return PairScores(*np.concatenate(team.gather(found), axis=1))
