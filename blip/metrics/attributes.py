"""Mean average precision of attributes, as the evaluator of OVAD computes it.

Scores are clipped to [0, 1]. A box counts for the attributes that it is labelled for, with yes or
no; an attribute that no labelled box has is left out; the mean is over attributes, not boxes.

Source: Bravo et al. 2023; the evaluator of OVAD-Benchmark, which calls scikit-learn.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blip.errors import DataError
from blip.metrics.agreement import spread

Floats = NDArray[np.float64]

ALL = "all"


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike = 1.0) -> Floats:
    """Give the mean precision at the recalls that falling thresholds reach.

    Equal scores fall together, so their order does not matter.

    Args:
        labels: (N) truth, yes or no.
        scores: (N).
        weights: (..., N) how often each counts.

    Returns:
        (...) in [0, 1]; nan where there is no positive.
    """
    truth, values = np.asarray(labels, dtype=bool), np.asarray(scores)
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))  # of equal scores
    chosen = spread(weights, len(values))[..., order]
    counted = np.cumsum(chosen, axis=-1)[..., last]
    hits = np.cumsum(chosen * truth[order], axis=-1)[..., last]
    precision = np.divide(hits, counted, out=np.zeros_like(hits), where=counted > 0)
    gained = np.diff(hits, axis=-1, prepend=0.0)
    total = hits[..., -1]
    found: Floats = np.divide(
        (gained * precision).sum(axis=-1), total, out=np.full_like(total, np.nan), where=total > 0
    )
    return found


def average_precisions(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike = 1.0) -> Floats:
    """Give the average precision of every attribute.

    Args:
        labels: (N, C) 1 yes, 0 no, anything else is not labelled.
        scores: (N, C).
        weights: (..., N) how often each box counts.

    Returns:
        (..., C) in [0, 1]; nan where no box has the attribute.

    Raises:
        DataError: The shapes differ, or a score is not a number.
    """
    truth, values = np.asarray(labels), np.clip(np.asarray(scores), 0.0, 1.0)
    if truth.shape != values.shape or truth.ndim != 2:
        raise DataError(
            f"labels of shape {truth.shape}, scores of {values.shape}: both must be boxes x "
            "attributes"
        )
    for box, attribute in np.argwhere(np.isnan(values))[:1]:
        raise DataError(f"box {box}, attribute {attribute}: the score is not a number")
    counts = spread(weights, len(truth))
    each = [np.full(counts.shape[:-1], np.nan) for _ in range(truth.shape[1])]
    for attribute in range(truth.shape[1]):
        known = np.flatnonzero((truth[:, attribute] == 0) | (truth[:, attribute] == 1))
        if len(known):
            each[attribute] = average_precision(
                truth[known, attribute], values[known, attribute], counts[..., known]
            )
    return np.stack(each, axis=-1)


def mean_average_precision(
    precisions: Floats, groups: Mapping[str, Sequence[int]]
) -> dict[str, Floats]:
    """Give the mean over all attributes, and over each group of them, in percent.

    Args:
        precisions: (..., C) from `average_precisions`.
        groups: The attributes of each group: head, medium and tail.
    """
    members = {ALL: range(precisions.shape[-1]), **groups}
    return {name: 100.0 * _mean(precisions[..., list(chosen)]) for name, chosen in members.items()}


def _mean(values: Floats) -> Floats:
    """Give the mean of the values that are defined."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    found: Floats = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return found
