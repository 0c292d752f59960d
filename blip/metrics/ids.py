"""Predictions belong to the examples of a set: each has one, and there is none of another."""

from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import islice

from blip.errors import DataError

NAMED = 5  # ids in a message


def require_one_each(
    predicted: Iterable[Hashable],
    expected: Iterable[Hashable],
    predictions: object,
    examples: object,
) -> None:
    """See that every example has one prediction, whatever their order.

    Args:
        predicted: The ids that were predicted for.
        expected: The ids of the examples.
        predictions: Names the source of the predictions in the message.
        examples: Names that of the examples.

    Raises:
        DataError: Predictions are missing, are surplus or stand twice; the ids are named.
    """
    counts, wanted = Counter(predicted), dict.fromkeys(expected)
    problems = {
        "stands more than once": [key for key, count in counts.items() if count > 1],
        f"is not in {examples}": [key for key in counts if key not in wanted],
        "has no prediction": [key for key in wanted if key not in counts],
    }
    for what, ids in problems.items():
        if ids:
            raise DataError(
                f"{predictions}: {name_some(ids)} {what}: give one prediction for each of the "
                f"{len(wanted)} examples of {examples}"
            )


def name_some(ids: Iterable[object]) -> str:
    """Name the first few of some ids, and how many there are."""
    ids = list(ids)
    named = ", ".join(map(str, islice(ids, NAMED)))
    return named if len(ids) <= NAMED else f"{named} ... ({len(ids)} in all)"
