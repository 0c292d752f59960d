"""The answer first: did bootstrapping help, by how much, and how sure is that."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from blip.evaluate.bootstrap import Difference, Interval
from blip.report.arms import CANDIDATE, Arm
from blip.report.axes import Chart, number
from blip.report.charts import IntervalRow, interval_chart
from blip.report.comparison import (
    DECIDING,
    MEASURES,
    Comparison,
    Measure,
    Outcome,
    outcome,
    read_comparisons,
    read_values,
    verdict,
)
from blip.report.figure import Figure, Section
from blip.report.markup import NOTHING, Markup, join, tag

_SHORT = {"unfiltered": "unfiltered", "human": "human only"}
_SERIES: dict[Outcome, str] = {
    "ahead": "series-blue",
    "behind": "series-orange",
    "level": "series-slate",
}


def headline_section(
    root: Path, arms: Sequence[Arm], corpora: Mapping[str, Counter[str]], confidence: float
) -> Section:
    """Say what was compared and what came out, with every number's interval.

    Args:
        root: The project's folder.
        arms: To be shown, in order.
        corpora: Number of texts by origin that each arm was trained on, by the arm's name.
        confidence: Of the intervals.
    """
    comparisons = read_comparisons(root)
    values = {arm.name: read_values(root / "results" / arm.name) for arm in arms}
    forests = [_forests(comparison, comparisons) for comparison in comparisons]
    charts = [chart for row in zip(*forests, strict=True) for chart in row]
    cards = [_card(c, drawn) for c, drawn in zip(comparisons, forests, strict=True)]
    content = [
        tag("div", cards, class_="cards") if cards else None,
        tag("p", _reading(confidence), class_="note") if cards else None,
        _table(arms, corpora, values) if any(values.values()) else None,
    ]
    figures = [Figure("comparison", charts, columns=len(comparisons))] if charts else []
    return Section("result", verdict(comparisons), join(content), figures)


def _card(comparison: Comparison, charts: Sequence[Chart]) -> Markup:
    heading = tag("h2", comparison.sentence())
    return tag("section", heading, [chart.svg() for chart in charts], class_="card")


def _forests(comparison: Comparison, comparisons: Sequence[Comparison]) -> list[Chart]:
    """Draw the differences, a chart a task, in the same range for all comparisons."""
    baseline = _SHORT.get(comparison.baseline, comparison.baseline)
    charts = []
    for task in DECIDING:
        ends = [end for c in comparisons for _, d in c.of_task(task) for end in (d.low, d.high)]
        if ends:
            rows = [_forest_row(measure, d) for measure, d in comparison.of_task(task)]
            title = f"{task.capitalize()}: bootstrapped minus {baseline}"
            charts.append(interval_chart(title, rows, "points", ends))
    return charts


def _forest_row(measure: Measure, d: Difference) -> IntervalRow:
    return IntervalRow(
        label=measure.label,
        series=_SERIES[outcome(d)],
        value=d.difference,
        low=d.low,
        high=d.high,
        value_text=number(d.difference, 1, sign=True),
        interval_text=f"{number(d.low, 1, sign=True)} to {number(d.high, 1, sign=True)}",
    )


def _reading(confidence: float) -> str:
    return (
        f"Differences on the same test images with their {confidence:.0%} interval (paired "
        "bootstrap over images). A hollow mark means that the interval includes zero. Intervals "
        "tell how far other test images would move the numbers; they do not cover how far another "
        "seed of training would."
    )


def _table(
    arms: Sequence[Arm],
    corpora: Mapping[str, Counter[str]],
    values: Mapping[str, Mapping[Measure, Interval]],
) -> Markup:
    shown = [arm for arm in arms if values[arm.name]]
    measures = [m for m in MEASURES if any(m in values[arm.name] for arm in shown)]
    best = {m: max(v[m].value for v in values.values() if m in v) for m in measures}
    heads = [
        tag("th", name, scope="col") for name in ("Pre-trained on", *(m.label for m in measures))
    ]
    rows = [
        [
            _row_head(arm, corpora.get(arm.name)),
            [_cell(values[arm.name].get(m), best[m], m) for m in measures],
        ]
        for arm in shown
    ]
    body = tag("tbody", [tag("tr", row) for row in rows])
    return tag("table", tag("thead", tag("tr", heads)), body, class_="arms")


def _row_head(arm: Arm, texts: Counter[str] | None) -> Markup:
    corpus = " + ".join(f"{number(n, 0)} {origin}" for origin, n in (texts or {}).items() if n)
    label = tag("b" if arm.name == CANDIDATE else "span", arm.label)
    return tag("th", tag("i", class_=arm.series), label, tag("small", corpus), scope="row")


def _cell(value: Interval | None, best: float, measure: Measure) -> Markup:
    if value is None:
        return tag("td", NOTHING, data_label=measure.label)
    figure = tag("strong" if value.value == best else "span", number(value.value, 1))
    interval = f"{number(value.low, 1)} to {number(value.high, 1)}"
    return tag("td", figure, tag("small", interval), data_label=measure.label)
