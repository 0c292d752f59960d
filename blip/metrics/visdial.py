"""Ranks of the right answer and NDCG of VisDial v1.0, as the challenge's script computes them.

The ranks of a round are those of its candidates, 1 the best. Sparse scores look at the one answer
that was given in the dialog; NDCG at how many people found each candidate right, among as many
first ranks as there are candidates that anybody found right.

Source: Das et al. 2017, and the starter code of the VisDial challenge.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blip.errors import DataError

CUTS = (1, 5, 10)

Floats = NDArray[np.float64]


def to_ranks(scores: ArrayLike) -> NDArray[np.int64]:
    """Rank candidates (..., C) by falling score, from 1; the first of equals is better.

    Raises:
        ValueError: A score is not a number.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if np.isnan(scores).any():
        raise ValueError("a score is not a number, so that nothing can be ranked by it")
    order = np.argsort(-scores, axis=-1, kind="stable")
    return np.argsort(order, axis=-1) + 1


def require_ranks(ranks: Sequence[int], count: int, where: str) -> None:
    """See that ranks are 1 to `count`, each once.

    Raises:
        DataError: They are not; `where` names the record.
    """
    if sorted(ranks) != list(range(1, count + 1)):
        odd = [rank for rank in ranks if not 1 <= rank <= count or ranks.count(rank) > 1]
        raise DataError(
            f"{where}: ranks are {len(ranks)} numbers, among them {odd[:3]}: they must be "
            f"1 to {count}, each once, in the order of the options"
        )


def sparse(ranks: ArrayLike) -> dict[str, Floats]:
    """Give what is averaged over rounds, of the (R) ranks of their right answers.

    Returns:
        `mrr` reciprocal rank, `r1`, `r5`, `r10` whether among the first, `mean_rank`; all (R).
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    found = {"mrr": 1.0 / ranks, "mean_rank": ranks}
    return found | {f"r{cut}": (ranks <= cut).astype(np.float64) for cut in CUTS}


def ndcg(ranks: ArrayLike, relevance: ArrayLike) -> float:
    """Give the normalised discounted cumulative gain of one round.

    Args:
        ranks: (C) of the candidates, from 1.
        relevance: (C) share of people who found each right; one is positive at least.

    Raises:
        ValueError: No candidate is relevant, so that the gain has no norm.
    """
    ranks, relevance = np.asarray(ranks), np.asarray(relevance, dtype=np.float64)
    count = np.count_nonzero(relevance)
    if not count:
        raise ValueError("no candidate is relevant")
    discounts = 1.0 / np.log2(np.arange(count) + 2.0)
    best = np.sort(relevance)[::-1][:count]
    return float(relevance[np.argsort(ranks)][:count] @ discounts / (best @ discounts))
