"""Given pairs of captions and photos, scored by a checkpoint that matches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blip.config import Config
from blip.data.text import clean_caption
from blip.evaluate.features import Images
from blip.evaluate.network import open_network
from blip.evaluate.pairs import PairScores, score_pairs
from blip.models.matching import Texts


def match_captions(
    config: Config,
    checkpoint: Path,
    images: Images,
    captions: Sequence[str],
    rows: NDArray[np.int64],
    owner: NDArray[np.int64],
) -> PairScores:
    """Score pairs, in their order.

    Args:
        config: `evaluate`, and the text limits of `finetune.retrieval`, are read.
        checkpoint: Of a model that matches.
        images: The photos.
        captions: As written.
        rows: (P) the caption of each pair.
        owner: (P) the photo of each pair, rising.

    Raises:
        CheckpointError: It cannot be read, or was made for something else.
        DataError: A photo is missing or damaged.
    """
    model, tokenizer, _ = open_network(checkpoint, "matching", config.threads)
    limits = config.finetune.retrieval
    cleaned = [clean_caption(caption, limits.max_words) for caption in captions]
    texts = Texts(*tokenizer.encode(cleaned, limits.max_tokens))
    return score_pairs(model, images, texts, rows, owner, config.evaluate)
