"""The loss curves of the pre-training arms: whether they learned, and when."""

import math
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
_MOST_POINTS = 240  # a curve of more is thinned: the page must stay small


def curves_section(root: Path, arms: Sequence[Arm]) -> Section | None:
    """Draw the losses and the matching accuracy of every arm; None where no arm has curves here."""
    read = [(arm, read_columns(root / "models" / arm.name / "curves.csv")) for arm in arms]
    found = [(arm, curves) for arm, curves in read if curves]
    charts = []
    for column, title in _PANELS.items():
        lines = [_line(arm, curves["step"], curves[column]) for arm, curves in found if column in curves]
        lines = [line for line in lines if line.xs]
        if lines:
            charts.append(line_chart(title, lines, "step", width=282, height=200))
    if not charts:
        return None
    figure = Figure(
        "curves",
        charts,
        [(arm.series, arm.label) for arm, _ in found],
        caption="Strong lines are smoothed (exponential average); the values as logged stand faintly behind.",
    )
    lead = tag(
        "p",
        "All arms start from the same seed and take the same number of steps. An ITM loss that stays near 0.63 means "
        "that matching was not learned: with one positive in three, that is the loss of always guessing.",
    )
    return Section("curves", "Pre-training", join([lead, figure.html()]), [figure])


def smooth(values: Sequence[float], half_life: float) -> list[float]:
    """Give the exponential average, unbiased at its start, that forgets half in `half_life` points."""
    keep = 0.5 ** (1 / half_life)
    total, weight, smoothed = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def _line(arm: Arm, steps: Sequence[float], values: Sequence[float]) -> Line:
    points = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    averaged = smooth([v for _, v in points], max(1.0, len(points) / 20))
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), _MOST_POINTS)).astype(int)) if points else []
    return Line(
        arm.label,
        arm.series,
        xs=[points[i][0] for i in kept],
        ys=[averaged[i] for i in kept],
        raw=[points[i][1] for i in kept],
    )
