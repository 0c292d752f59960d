"""Ranks in whole score matrices, as the reference's evaluation counts them.

A query finds what ranks first in its row, by falling score. Among equal scores the later one comes
first, which is what is left of the reference's rising sort when it is read backwards. (Its sort is
not a stable one: where scores of candidates tie exactly, numpy decides by the processor.)

Source: BLIP.md 5.1, 5.6; `itm_eval` of salesforce/BLIP.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blip.errors import DataError

Integers = NDArray[np.int64]


def ranks(scores: ArrayLike, targets: ArrayLike) -> Integers:
    """Give the rank, from 0, of the target of each of Q queries.

    Args:
        scores: (Q, N).
        targets: (Q) below N.

    Raises:
        DataError: A score is not a number.
    """
    scores = np.asarray(scores)
    found = np.empty(len(scores), dtype=np.int64)
    for query, (row, target) in enumerate(zip(scores, np.asarray(targets), strict=True)):
        if np.isnan(row).any():
            raise DataError(f"scores, row {query}: holds what is not a number: score it again")
        higher = np.count_nonzero(row > row[target])
        found[query] = higher + np.count_nonzero(row[target + 1 :] == row[target])
    return found


def best_ranks(scores: ArrayLike, own: Sequence[Sequence[int]]) -> Integers:
    """Give the rank of the best of the targets of each of Q queries, all of which have one."""
    scores = np.asarray(scores)
    first = [
        max(zip(row[list(targets)], targets, strict=True))[1]
        for row, targets in zip(scores, own, strict=True)
    ]
    return ranks(scores, first)
