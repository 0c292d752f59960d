"""What is right in NLVR2, and which examples are of one sentence, as the official script has it.

A prediction is right where it is the label, whatever its case; anything else, even what is neither
true nor false, is wrong. A sentence was written about several pairs of photos, and is consistent
where it is judged rightly of all of them.

Source: Suhr et al. 2019, and the evaluation code of lil-lab/nlvr.
"""

from collections.abc import Iterable, Sequence

from blip.metrics.ids import require_one_each


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
