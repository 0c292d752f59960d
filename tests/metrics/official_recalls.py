"""The figures of retrieval that the reference prints, from ranks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

CUTS = (1, 5, 10)


def recalls(found: ArrayLike, cuts: Sequence[int] = CUTS) -> dict[int, float]:
    """Give the percent of queries whose target ranks below each cut."""
    found = np.asarray(found)
    return {cut: 100.0 * np.count_nonzero(found < cut) / len(found) for cut in cuts}


def median_rank(found: ArrayLike) -> float:
    """Give the median of ranks counted from 1."""
    return float(np.median(np.asarray(found) + 1))


def summary(of_items: ArrayLike, of_texts: ArrayLike, item: str) -> dict[str, float]:
    """Give the recalls both ways, their means, and the mean of these, under the official names.

    Args:
        of_items: Rank of the best own text of each image or video.
        of_texts: Rank of the image or video of each text.
        item: `img` or `vid`.
    """
    scores: dict[str, float] = {}
    for name, found in (("txt", of_items), (item, of_texts)):
        by_cut = recalls(found)
        scores |= {f"{name}_r{cut}": value for cut, value in by_cut.items()}
        scores[f"{name}_r_mean"] = sum(by_cut.values()) / len(by_cut)
    scores["r_mean"] = (scores["txt_r_mean"] + scores[f"{item}_r_mean"]) / 2
    return scores
