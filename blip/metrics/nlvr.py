"""Accuracy and consistency of NLVR2, as the official script computes them.

A prediction is right where it is the label, whatever its case; anything else, even what is neither
true nor false, is wrong. A sentence was written about several pairs of photos, and is consistent
where it is judged rightly of all of them.

Source: Suhr et al. 2019, and the evaluation code of lil-lab/nlvr.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from blip.metrics.ids import require_one_each


class Summary(NamedTuple):
    """Shares of what is right: of examples, and of sentences with all their examples."""

    accuracy: float
    consistency: float


def group_of(identifier: str) -> str:
    """Give the identifier of a sentence: that of an example without the pair of photos."""
    split, number, _, *sentence = identifier.split("-")
    return "-".join((split, number, "", *sentence))


def judge(
    predictions: Iterable[tuple[str, str]],
    identifiers: Sequence[str],
    labels: Sequence[bool],
    where: object,
    of: object,
) -> list[bool]:
    """Say of every example whether its prediction is right, in the order of the examples.

    Args:
        predictions: Identifiers, each with `true` or `false` in any case.
        identifiers: `split-set-pair-sentence` of all examples of a set.
        labels: Whether each is true.
        where: Names the source of the predictions in messages.
        of: Names that of the examples.

    Raises:
        DataError: Predictions are missing, are surplus or stand twice; they are named.
    """
    pairs = list(predictions)
    require_one_each((key for key, _ in pairs), identifiers, where, of)
    said = {identifier: prediction.lower() for identifier, prediction in pairs}
    examples = zip(identifiers, labels, strict=True)
    return [said[identifier] == str(label).lower() for identifier, label in examples]


def summarise(right: Sequence[bool], groups: Sequence[str]) -> Summary:
    """Summarise examples of which each is right or not, and belongs to the sentence of its group."""
    consistent = dict.fromkeys(groups, True)
    for holds, group in zip(right, groups, strict=True):
        consistent[group] &= holds
    return Summary(sum(right) / len(right), sum(consistent.values()) / len(consistent))
