"""The loss curves of the pre-training arms: whether they learned, and when."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blip.report.arms import Arm
from blip.report.charts import Line, line_chart
from blip.report.figure import Figure, Section
from blip.report.markup import join, tag
from blip.report.records import read_columns

_PANELS = {
    "loss_itc": "ITC loss (contrast)",
    "loss_itm": "ITM loss (matching)",
    "loss_lm": "LM loss (captioning)",
    "itm_accuracy": "ITM accuracy",
}
_LEAD = (
    "All arms start from the same seed and take the same number of steps. An ITM loss that stays "
    "near 0.63 means that matching was not learned: with one positive in three, that is the loss "
    "of always guessing."
)
_MOST_POINTS = 240  # a curve of more is thinned: the page must stay small


def curves_section(root: Path, arms: Sequence[Arm]) -> Section | None:
    """Draw the losses and the matching accuracy of every arm; None where no arm has curves here."""
    read = [(arm, read_columns(root / "models" / arm.name / "curves.csv")) for arm in arms]
    found = [(arm, curves) for arm, curves in read if curves]
    charts = []
    for column, title in _PANELS.items():
        lines = [
            line
            for arm, curves in found
            if column in curves
            for line in _lines(arm, curves, column)
        ]
        if lines:
            charts.append(line_chart(title, lines, "step", width=282, height=200))
    if not charts:
        return None
    caption = "Strong lines are smoothed; the values as logged stand faintly behind."
    figure = Figure(
        "curves", charts, [(arm.series, arm.label) for arm, _ in found], caption=caption
    )
    return Section("curves", "Pre-training", join([tag("p", _LEAD), figure.html()]), [figure])


def smooth(values: Sequence[float], points: Sequence[int], width: float) -> list[float]:
    """Give, at some points of a curve, the average of it around each, in a Gaussian window.

    Args:
        values: (N) of the curve.
        points: Indices into it.
        width: Standard deviation of the window, in points.
    """
    distance = np.subtract.outer(np.asarray(points), np.arange(len(values))) / width
    weights = np.exp(-(distance**2) / 2)
    smoothed: list[float] = (weights @ np.asarray(values) / weights.sum(axis=1)).tolist()
    return smoothed


def _lines(arm: Arm, curves: dict[str, list[float]], column: str) -> list[Line]:
    """Give the curve of a column, thinned; none where it has no value."""
    steps, values = np.asarray(curves["step"]), np.asarray(curves[column])
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    if not len(steps):
        return []
    points = np.unique(np.linspace(0, len(steps) - 1, _MOST_POINTS).astype(int)).tolist()
    smoothed = smooth(values.tolist(), points, max(0.5, len(steps) / 50))
    return [Line(arm.label, arm.series, steps[points].tolist(), smoothed, values[points].tolist())]
