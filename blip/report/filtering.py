"""How well the filter tells true texts from noise, and what another threshold would do."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip.report.axes import Chart
from blip.report.charts import Bar, Histogram, Line, bar_chart, histogram_chart, line_chart
from blip.report.figure import Figure, Section
from blip.report.markup import Markup, join, tag
from blip.report.records import read_columns, read_metrics

CLEAN = "clean"

_GROUPS = {
    "clean": ("clean web texts", "series-blue"),
    "noisy": ("noisy web texts", "series-orange"),
    "web": ("web texts", "series-orange"),
    "synthetic": ("synthetic texts", "series-green"),
}
_CURVES = {
    "precision": ("precision", "series-blue"),
    "recall": ("recall", "series-purple"),
    "web_kept": ("web texts kept", "series-orange"),
    "synthetic_kept": ("synthetic texts kept", "series-green"),
}
_FIGURES = {
    "precision": ("Precision", "of the web texts kept, how many are clean"),
    "recall": ("Recall", "of the clean web texts, how many are kept"),
    "auc": ("ROC area", "chance that a clean text scores above a noisy one"),
    "web_kept": ("Web texts kept", "of all"),
    "noise_ratio": ("Noise ratio", "of the synthetic texts, how many are dropped"),
    "synthetic_true": ("True synthetic texts", "before the filter: all that they state is so"),
    "synthetic_true_kept": ("True, of those kept", "after the filter"),
}


def filter_section(root: Path, threshold: float) -> Section | None:
    """Draw scores, kinds of noise and thresholds; None where the filter was not measured."""
    folder = root / "results" / "filter"
    metrics = read_metrics(folder / "metrics.json").get("filter", {})
    if not metrics:
        return None
    scores = Figure("scores", *_scores(read_columns(folder / "histogram.csv"), threshold))
    curve = Figure("thresholds", *_thresholds(read_columns(folder / "thresholds.csv"), threshold))
    kinds = Figure("kinds", _kinds(metrics.get("kinds", {})))
    figures = [figure for figure in (scores, kinds, curve) if figure.charts]
    content = [_numbers(metrics), tag("div", [figure.html() for figure in figures], class_="row")]
    return Section("filter", "The filter", join(content), figures)


def _numbers(metrics: Mapping[str, Any]) -> Markup:
    tiles = []
    for name, (title, meaning) in _FIGURES.items():
        node = metrics.get(name)
        if node and node["value"] is not None:
            interval = (
                ""
                if node["low"] is None
                else f"{_share(name, node['low'])} to {_share(name, node['high'])}"
            )
            tiles.append(
                [
                    tag("dt", title),
                    tag("dd", tag("strong", _share(name, node["value"])), tag("small", interval)),
                ]
            )
            tiles[-1].append(tag("dd", meaning, class_="meaning"))
    return tag("dl", [tag("div", tile) for tile in tiles], class_="tiles")


def _scores(
    columns: Mapping[str, list[float]], threshold: float
) -> tuple[list[Chart], list[tuple[str, str]]]:
    """Give the histogram of match probabilities and its legend."""
    groups = [
        Histogram(name, series, columns[column])
        for column, (name, series) in _GROUPS.items()
        if sum(columns.get(column, []))
    ]
    if not groups:
        return [], []
    edges = [*columns["low"], columns["high"][-1]]
    mark = (threshold, f"threshold {threshold:g}")
    chart = histogram_chart(
        "Share of each group by match probability", edges, groups, "match probability", mark
    )
    return [chart], [(group.series, group.name) for group in groups]


def _thresholds(
    columns: Mapping[str, list[float]], threshold: float
) -> tuple[list[Chart], list[tuple[str, str]]]:
    """Give what each threshold would do, and the legend."""
    shares = dict(columns)
    if "noise_ratio" in shares:
        shares["synthetic_kept"] = [1.0 - value for value in shares["noise_ratio"]]
    lines = []
    for column, (name, series) in _CURVES.items():
        points = [
            p
            for p in zip(shares.get("threshold", []), shares.get(column, []), strict=False)
            if math.isfinite(p[1])
        ]
        if points:
            lines.append(Line(name, series, *zip(*points, strict=True)))
    if not lines:
        return [], []
    mark = (threshold, f"threshold {threshold:g}")
    chart = line_chart(
        "What another threshold would do", lines, "threshold", (0.0, 1.0), mark, percent=True
    )
    return [chart], [(line.series, line.name) for line in lines]


def _kinds(kinds: Mapping[str, Any]) -> list[Chart]:
    """Give the share dropped of each kind of web text, the best recognised noise first."""
    known = {kind: node for kind, node in kinds.items() if node["kept"]["value"] is not None}
    if not known:
        return []
    order = sorted(known, key=lambda kind: (kind == CLEAN, known[kind]["kept"]["value"]))
    bars = [_kind(kind, known[kind]) for kind in order]
    return [bar_chart("Share dropped, by kind of web text", bars, 92, 118, longest=1.0)]


def _kind(kind: str, node: Mapping[str, Any]) -> Bar:
    kept = node["kept"]
    area = node.get("auc")
    note = f"{1 - kept['value']:.0%} of {node['texts']}"
    name = (
        kind
        if area is None or area["value"] is None
        else f"{kind}: ROC area against clean {area['value']:.2f}"
    )
    interval = None if kept["low"] is None else (1 - kept["high"], 1 - kept["low"])
    series = "series-blue" if kind == CLEAN else "series-orange"
    return Bar(kind, [(series, 1 - kept["value"])], note, interval, name)


def _share(name: str, value: float) -> str:
    return f"{value:.3f}" if name == "auc" else f"{value:.0%}"
