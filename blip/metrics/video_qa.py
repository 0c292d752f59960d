"""Accuracy of answers about videos: exact match, and what ActivityNet-QA's tool makes of it.

Source: `evaluation/eval.py` of MILVLG/activitynet-qa, commit 2cf80ae; Xu et al. 2017 for MSVD-QA and
MSRVTT-QA, where an answer is right or wrong as a whole.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TYPES: Mapping[int, str] = {
    0: "motion",
    1: "spatial_relation",
    2: "temporal_relation",
    3: "yes_no",
    4: "color",
    5: "object",
    6: "location",
    7: "number",
    8: "other",
}
NUM_FIXED = 3  # the types before are no free questions


def exact_matches(predicted: Sequence[str], answers: Sequence[str]) -> NDArray[np.bool_]:
    """Say which answers are right, letter for letter."""
    return np.array([a == b for a, b in zip(predicted, answers, strict=True)], dtype=bool)


def activitynet_shares(types: Sequence[int]) -> dict[str, tuple[Floats, Floats]]:
    """Say what each question counts for in the figures of ActivityNet-QA.

    The tool means its figure `free` to be the accuracy over the free questions. But it divides by
    the number of questions of all types but the three that its file names first, instead of the
    three that are not free; so does `free` here, and `free_questions` is what was meant.

    Args:
        types: Of the questions, in the order of the file of answers.

    Returns:
        By name: what a right answer adds (N), and what its question adds to the divisor (N).
    """
    kinds = np.asarray(types)
    first = list(dict.fromkeys(types))[:NUM_FIXED]
    ones, free = np.ones(len(kinds)), (kinds >= NUM_FIXED).astype(np.float64)
    shares = {name: (kinds == kind).astype(np.float64) for kind, name in TYPES.items()}
    return {
        **{name: (share, share) for name, share in shares.items() if share.any()},
        "free": (free, (~np.isin(kinds, first)).astype(np.float64)),
        "free_questions": (free, free),
        "all": (ones, ones),
    }
