"""The answer first: did bootstrapping help, by how much, and how sure is that."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blip.evaluate.bootstrap import Difference, Interval
from blip.report.arms import CANDIDATE, Arm
from blip.report.axes import Chart, number
from blip.report.charts import IntervalRow, interval_chart
from blip.report.figure import Figure, Section
from blip.report.markup import Markup, join, tag
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
_DECIDES = {"retrieval": MEASURES[2], "captioning": MEASURES[3]}

_AGAINST = {"unfiltered": "the unfiltered corpus", "human": "human data alone"}
_WORDS: dict[Outcome, str] = {"ahead": "ahead in", "behind": "behind in", "level": "no measurable difference in"}
_SERIES: dict[Outcome, str] = {"ahead": "series-blue", "behind": "series-orange", "level": "series-slate"}


@dataclass(frozen=True)
class Comparison:
    """The candidate against one baseline, on the same test images."""

    baseline: str
    differences: Mapping[Measure, Difference]

    @property
    def against(self) -> str:
        """Give what the baseline is, in words."""
        return _AGAINST.get(self.baseline, self.baseline)

    def deciding(self) -> dict[str, Difference]:
        """Give, for each task that was compared, the difference that decides."""
        return {t: self.differences[m] for t, m in _DECIDES.items() if m in self.differences}

    def outcomes(self) -> dict[str, Outcome]:
        """Give what the deciding difference of each task says."""
        return {task: outcome(difference) for task, difference in self.deciding().items()}


def headline_section(root: Path, arms: Sequence[Arm], confidence: float) -> Section:
    """Say what was compared and what came out, with every number's interval."""
    comparisons = read_comparisons(root)
    values = {arm.name: read_values(root / "results" / arm.name) for arm in arms}
    figure = Figure("comparison", [_forest(comparison) for comparison in comparisons], caption=_reading(confidence))
    content = [
        tag("div", [_card(*pair) for pair in zip(comparisons, figure.charts, strict=True)], class_="cards"),
        tag("p", figure.caption, class_="note") if comparisons else None,
        _table(arms, values) if any(values.values()) else None,
    ]
    return Section("result", verdict(comparisons), join(content), [figure] if comparisons else [])


def outcome(difference: Difference) -> Outcome:
    """Give what a difference says: only an interval without zero is one."""
    if difference.low > 0:
        return "ahead"
    return "behind" if difference.high < 0 else "level"


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Give the answer in one or two short sentences, from the intervals alone."""
    found = {c.baseline: set(c.outcomes().values()) for c in comparisons if c.outcomes()}
    if "unfiltered" not in found:
        return "No comparison with the unfiltered corpus yet."
    match found["unfiltered"], found.get("human"):
        case gain, None:
            return _gain(gain)
        case gain, control:
            return f"{_gain(gain)} {_control(control)}"


def read_comparisons(root: Path) -> list[Comparison]:
    """Read the paired comparisons of the candidate: first with the unfiltered arm, then with human data alone."""
    folder = root / "results" / "comparison"
    found = {path.parent.name: read_metrics(path) for path in sorted(folder.glob("*/metrics.json"))}
    names = [name for name in _AGAINST if name in found] + [name for name in found if name not in _AGAINST]
    comparisons = []
    for name in names:
        numbers = {m: found[name].get(m.task, {}).get(m.metric) for m in MEASURES}
        differences = {m: Difference(**_defined(node)) for m, node in numbers.items() if node}
        comparisons.append(Comparison(name, differences))
    return comparisons


def read_values(folder: Path) -> dict[Measure, Interval]:
    """Read an arm's results; empty where it was not measured."""
    found = {}
    for measure in MEASURES:
        metrics = read_metrics(folder / measure.task / "metrics.json")
        node = metrics.get(measure.task, {}).get(measure.metric)
        if node:
            found[measure] = Interval(**_defined(node))
    return found


def _gain(outcomes: set[Outcome]) -> str:
    match sorted(outcomes):
        case ["ahead"]:
            return "Bootstrapping helped."
        case ["ahead", "level"]:
            return "Bootstrapping helped in part."
        case ["level"]:
            return "Bootstrapping made no measurable difference."
        case ["ahead", "behind", *_]:
            return "Bootstrapping helped in one task and hurt in the other."
        case _:
            return "Bootstrapping hurt."


def _control(outcomes: set[Outcome]) -> str:
    match sorted(outcomes):
        case ["ahead"]:
            return "It beats human data alone, too."
        case ["ahead", "level"]:
            return "It beats human data alone in part."
        case ["level"]:
            return "It is no measurable gain over human data alone."
        case ["ahead", "behind", *_]:
            return "Against human data alone the result is mixed."
        case _:
            return "Human data alone did better."


def _card(comparison: Comparison, chart: Chart) -> Markup:
    return tag("section", tag("h2", _sentence(comparison.outcomes())), chart.svg(), class_="card")


def _sentence(outcomes: Mapping[str, Outcome]) -> str:
    """Give e.g. `Ahead in retrieval, no measurable difference in captioning.`"""
    parts = []
    for result, words in _WORDS.items():
        tasks = [task for task, found in outcomes.items() if found == result]
        if tasks:
            parts.append(f"{words} {' and '.join(tasks)}")
    said = ", ".join(parts)
    return f"{said[:1].upper()}{said[1:]}."


def _forest(comparison: Comparison) -> Chart:
    rows = [
        IntervalRow(
            measure.label,
            _SERIES[outcome(d)],
            d.difference,
            d.low,
            d.high,
            _signed(d.difference),
            f"{_signed(d.low)} to {_signed(d.high)}",
        )
        for measure, d in comparison.differences.items()
    ]
    return interval_chart(f"Bootstrapped minus {comparison.against}", rows, "points")


def _reading(confidence: float) -> str:
    return (
        f"Differences on the same test images with their {confidence:.0%} interval (paired bootstrap over images). "
        "A hollow mark means that the interval includes zero. The intervals tell how far other test images would move "
        "the numbers; they do not cover how far another seed of training would."
    )


def _table(arms: Sequence[Arm], values: Mapping[str, Mapping[Measure, Interval]]) -> Markup:
    measures = [m for m in MEASURES if any(m in found for found in values.values())]
    best = {m: max(values[arm.name][m].value for arm in arms if m in values[arm.name]) for m in measures}
    head = tag("tr", tag("th", "Pre-trained on", scope="col"), [tag("th", m.label, scope="col") for m in measures])
    rows = [
        tag(
            "tr",
            tag("th", tag("i", class_=arm.series), arm.label, scope="row", class_=arm.name == CANDIDATE and "own" or None),
            [_cell(values[arm.name].get(m), best[m], m.label) for m in measures],
        )
        for arm in arms
        if values[arm.name]
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows), class_="arms"), class_="scroll")


def _cell(value: Interval | None, best: float, label: str) -> Markup:
    if value is None:
        return tag("td", "–", data_label=label)
    shown = number(value.value, 1)
    interval = f"{number(value.low, 1)} to {number(value.high, 1)}" if math.isfinite(value.low) else ""
    return tag("td", tag("strong" if value.value == best else "span", shown), tag("small", interval), data_label=label)


def _signed(value: float) -> str:
    """Write a difference in points, with its sign."""
    return f"{'+' if value > 0 else ''}{number(value, 1)}"


def _defined(node: Any) -> dict[str, float]:
    """Give the numbers of a result: a bare one has no interval, null is undefined."""
    if not isinstance(node, dict):
        return {"value": float(node), "low": math.nan, "high": math.nan}
    return {name: math.nan if value is None else value for name, value in node.items()}
