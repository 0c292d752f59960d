"""The candidate arm against the others: the numbers that decide, and what they say in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blip.evaluate.bootstrap import Difference, Interval
from blip.report.records import read_metrics

Outcome = Literal["ahead", "behind", "level"]


@dataclass(frozen=True)
class Measure:
    """A number that arms are compared by, in percent or times 100, as papers give it."""

    task: str
    metric: str
    label: str


MEASURES = (
    Measure("retrieval", "tr_r1", "Text R@1"),
    Measure("retrieval", "ir_r1", "Image R@1"),
    Measure("retrieval", "r_mean", "Mean recall"),
    Measure("captioning", "cider", "CIDEr"),
    Measure("captioning", "bleu4", "BLEU-4"),
)
DECIDING = {"retrieval": MEASURES[2], "captioning": MEASURES[3]}

_AGAINST = {"unfiltered": "the unfiltered corpus", "human": "human data alone"}
_WORDS: dict[Outcome, tuple[str, str]] = {  # with the baseline's name, and once it was said
    "ahead": ("ahead of {} in", "ahead in"),
    "behind": ("behind {} in", "behind in"),
    "level": ("no measurable difference from {} in", "no measurable difference in"),
}
_VERDICTS: dict[frozenset[Outcome], tuple[str, str]] = {
    frozenset({"ahead"}): ("Bootstrapping helped.", "It beats human data alone."),
    frozenset({"behind"}): ("Bootstrapping hurt.", "Human data alone did better."),
    frozenset({"level"}): (
        "Bootstrapping made no measurable difference.",
        "Nor is it measurably different from human data alone.",
    ),
    frozenset({"ahead", "level"}): (
        "Bootstrapping helped in part.",
        "It beats human data alone in part.",
    ),
    frozenset({"behind", "level"}): (
        "Bootstrapping hurt in part.",
        "Human data alone did better in part.",
    ),
    frozenset({"ahead", "behind"}): (
        "Bootstrapping helped one task and hurt the other.",
        "Against human data alone it is ahead in one task and behind in the other.",
    ),
}


@dataclass(frozen=True)
class Comparison:
    """The candidate against one baseline, on the same test images."""

    baseline: str
    differences: Mapping[Measure, Difference]

    @property
    def against(self) -> str:
        """Give what the baseline is, in words."""
        return _AGAINST.get(self.baseline, self.baseline)

    def of_task(self, task: str) -> list[tuple[Measure, Difference]]:
        """Give the differences of one task."""
        return [(m, d) for m, d in self.differences.items() if m.task == task]

    def outcomes(self) -> dict[str, Outcome]:
        """Give, for each task that was compared, what its deciding difference says."""
        deciding = {task: self.differences.get(measure) for task, measure in DECIDING.items()}
        return {task: outcome(d) for task, d in deciding.items() if d is not None}

    def sentence(self) -> str:
        """Give e.g. `Ahead of human data alone in retrieval, behind in captioning.`."""
        parts: list[str] = []
        for result, (naming, short) in _WORDS.items():
            tasks = [task for task, found in self.outcomes().items() if found == result]
            if tasks:
                words = short if parts else naming.format(self.against)
                parts.append(f"{words} {' and '.join(tasks)}")
        text = ", ".join(parts)
        return f"{text[:1].upper()}{text[1:]}."


def outcome(difference: Difference) -> Outcome:
    """Give what a difference says: only an interval that excludes zero says something."""
    if difference.low > 0:
        return "ahead"
    return "behind" if difference.high < 0 else "level"


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Give the answer in one or two short sentences, from the intervals alone."""
    found = {c.baseline: frozenset(c.outcomes().values()) for c in comparisons}
    gain, control = found.get("unfiltered"), found.get("human")
    if not gain:
        return "No comparison with the unfiltered corpus yet"
    if not control:
        return _VERDICTS[gain][0]
    level: frozenset[Outcome] = frozenset({"level"})
    if control == level and gain != level:
        return f"{_VERDICTS[gain][0]} It is not measurably different from human data alone."
    return f"{_VERDICTS[gain][0]} {_VERDICTS[control][1]}"


def read_comparisons(root: Path) -> list[Comparison]:
    """Read the paired comparisons: first with the unfiltered arm, then with human data alone."""
    paths = sorted((root / "results" / "comparison").glob("*/metrics.json"))
    found = {path.parent.name: read_metrics(path) for path in paths}
    order = [
        *(name for name in _AGAINST if name in found),
        *(n for n in found if n not in _AGAINST),
    ]
    comparisons = []
    for name in order:
        nodes = {m: found[name].get(m.task, {}).get(m.metric) for m in MEASURES}
        differences = {m: Difference(**node) for m, node in nodes.items() if _is_defined(node)}
        comparisons.append(Comparison(name, differences))
    return [comparison for comparison in comparisons if comparison.differences]


def read_values(folder: Path) -> dict[Measure, Interval]:
    """Read an arm's results; empty where it was not measured."""
    found = {}
    for measure in MEASURES:
        metrics = read_metrics(folder / measure.task / "metrics.json")
        node = metrics.get(measure.task, {}).get(measure.metric)
        if _is_defined(node):
            found[measure] = Interval(**node)
    return found


def _is_defined(node: Mapping[str, Any] | None) -> bool:
    """Tell whether a result is there and no number of it is null, that is undefined."""
    return node is not None and None not in node.values()
