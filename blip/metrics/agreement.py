"""How far scores agree with what people said: the area under the ROC, and rank correlations.

Each takes N pairs and how often each pair counts, (..., N), so that resamples are computed at once;
without, every pair counts once, and the result equals that of scikit-learn or SciPy.

Sources: Fawcett 2006 (ROC); Kendall 1945 (tau-b), Stuart 1953 (tau-c); Spearman 1904.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blip.errors import DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def roc_auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike = 1.0) -> Floats:
    """Give the probability that a positive scores above a negative; ties count half.

    Args:
        labels: (N) truth, yes or no.
        scores: (N).
        weights: (..., N) how often each counts.

    Returns:
        (...) in [0, 1]; nan where one kind is missing.

    Raises:
        DataError: A score is not a number.
    """
    truth, levels = np.asarray(labels, dtype=bool), _levels(scores)
    counts = spread(weights, len(levels))
    positive, negative = _by_level(counts * truth, levels), _by_level(counts * ~truth, levels)
    wins = (positive * (np.cumsum(negative, axis=-1) - negative / 2)).sum(axis=-1)
    return _divide(wins, positive.sum(axis=-1) * negative.sum(axis=-1))


def kendall_tau_b(x: ArrayLike, y: ArrayLike, weights: ArrayLike = 1.0) -> Floats:
    """Give Kendall's tau-b, which allows for ties on both sides.

    Args:
        x: (N).
        y: (N).
        weights: (..., N) how often each pair counts.

    Returns:
        (...) in [-1, 1]; nan where one side is constant.

    Raises:
        DataError: A value is not a number, or one side has another length.
    """
    found = _concordance(x, y, weights)
    pairs = found.size * (found.size - 1) / 2
    return _divide(found.excess, np.sqrt((pairs - found.ties[0]) * (pairs - found.ties[1])))


def kendall_tau_c(x: ArrayLike, y: ArrayLike, weights: ArrayLike = 1.0) -> Floats:
    """Give Kendall's tau-c (Stuart's), for sides of unlike numbers of levels; see `kendall_tau_b`."""
    found = _concordance(x, y, weights)
    share = (found.levels - 1) / np.maximum(found.levels, 1)
    return _divide(2.0 * found.excess, found.size**2 * share)


def spearman(x: ArrayLike, y: ArrayLike, weights: ArrayLike = 1.0) -> Floats:
    """Give Spearman's rank correlation, ties at their mean rank; see `kendall_tau_b`."""
    sides = _sides(x, y)
    counts = spread(weights, len(sides[0]))
    middle = (counts.sum(axis=-1, keepdims=True) + 1) / 2
    a, b = (_mean_ranks(levels, counts) - middle for levels in sides)
    scale = (counts * a**2).sum(axis=-1) * (counts * b**2).sum(axis=-1)
    return _divide((counts * a * b).sum(axis=-1), np.sqrt(scale))


def spread(weights: ArrayLike, size: int) -> Floats:
    """Give weights (..., N); one number stands for N."""
    given = np.asarray(weights, dtype=np.float64)
    return np.broadcast_to(given, given.shape or (size,))


class _Concordance(NamedTuple):
    """Counts of pairs of pairs.

    Attributes:
        excess: Concordant less discordant ones.
        ties: Those that are equal on one side, for each side.
        size: How many pairs (x, y) there are.
        levels: Different values of the side that has fewer.
    """

    excess: Floats
    ties: tuple[Floats, Floats]
    size: Floats
    levels: NDArray[np.int64]


def _concordance(x: ArrayLike, y: ArrayLike, weights: ArrayLike) -> _Concordance:
    """Count, level by level of the side with fewer: of human ratings there are few."""
    few, many = sorted(_sides(x, y), key=lambda levels: int(levels.max(initial=-1)))
    counts = spread(weights, len(few))
    size = counts.sum(axis=-1)
    of_few, of_many = _by_level(counts, few), _by_level(counts, many)
    excess = np.zeros(size.shape)
    lower = np.zeros(of_many.shape)  # of each level of `many`, how much had a lower level of `few`
    for level in range(of_few.shape[-1]):
        rows = np.flatnonzero(few == level)
        here = _by_level(counts[..., rows], many[rows], of_many.shape[-1])
        below = np.cumsum(lower, axis=-1)
        above = below[..., -1:] - below
        excess += (here * (below - lower - above)).sum(axis=-1)
        lower += here
    few_ties, many_ties = ((n * (n - 1) / 2).sum(axis=-1) for n in (of_few, of_many))
    levels = np.minimum((of_few > 0).sum(axis=-1), (of_many > 0).sum(axis=-1))
    return _Concordance(excess, (few_ties, many_ties), size, levels)


def _levels(values: ArrayLike) -> Integers:
    """Number the different values from 0, rising.

    Raises:
        DataError: One is not a number.
    """
    numbers = np.asarray(values, dtype=np.float64)
    for place in np.flatnonzero(np.isnan(numbers))[:1]:
        raise DataError(f"score {place} of {len(numbers)} is not a number: score it again")
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def _by_level(weights: Floats, levels: Integers, size: int | None = None) -> Floats:
    """Add up the weights (..., N) of each level: (..., L)."""
    size = int(levels.max(initial=-1)) + 1 if size is None else size
    rows = weights.reshape(-1, weights.shape[-1])
    places = (np.arange(len(rows))[:, None] * size + levels).ravel()
    sums: Floats = np.bincount(places, rows.ravel(), len(rows) * size).astype(np.float64)
    return sums.reshape(*weights.shape[:-1], size)


def _mean_ranks(levels: Integers, weights: Floats) -> Floats:
    """Give the rank of each value from 1, equal ones that of their middle: (..., N)."""
    counts = _by_level(weights, levels)
    ranks: Floats = (np.cumsum(counts, axis=-1) - (counts - 1) / 2)[..., levels]
    return ranks


def _sides(x: ArrayLike, y: ArrayLike) -> tuple[Integers, Integers]:
    """Give the levels of both sides."""
    a, b = _levels(x), _levels(y)
    if a.shape != b.shape:
        raise DataError(f"{len(a)} scores and {len(b)} ratings: each needs the other")
    return a, b


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    undefined = np.full(np.shape(numerator), np.nan)
    found: Floats = np.divide(numerator, denominator, out=undefined, where=denominator > 0)
    return found
