"""The kinds of chart of the report: lines, intervals, histograms and bars, as plain SVG.

Colours are classes (`series-...`), which a style sheet gives for its light or dark ground.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from blip.report.axes import Chart, Scale, rounded_range, text, ticks, x_axis, y_axis
from blip.report.markup import Markup, join, tag


@dataclass(frozen=True)
class Line:
    """A curve; `raw` are the values before smoothing, drawn faintly behind."""

    name: str
    series: str
    xs: Sequence[float]
    ys: Sequence[float]
    raw: Sequence[float] = ()


@dataclass(frozen=True)
class IntervalRow:
    """A value with its interval; its label stands at the left, its numbers at the right."""

    label: str
    series: str
    value: float
    low: float
    high: float
    value_text: str
    interval_text: str


@dataclass(frozen=True)
class Histogram:
    """Counts of one group in the bins of a histogram."""

    name: str
    series: str
    counts: Sequence[float]


@dataclass(frozen=True)
class Bar:
    """A horizontal bar of one or more segments (series, value).

    Attributes:
        label: Before it.
        segments: From its start.
        note: What stands behind it.
        interval: Of its length.
        name: What it says when pointed at, if more than label and note.
    """

    label: str
    segments: Sequence[tuple[str, float]]
    note: str
    interval: tuple[float, float] | None = None
    name: str = ""


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_title: str,
    y_range: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
    percent: bool = False,
    width: float = 400.0,
    height: float = 230.0,
) -> Chart:
    """Draw curves over a common x.

    Args:
        title: What the y axis measures.
        lines: At least one, with at least one point each.
        x_title: What the x axis measures.
        y_range: Of the y axis; else that of the smoothed curves.
        mark: An x to mark, and its name.
        percent: Whether the values are shares, to be written as such.
        width: Of the drawing.
        height: Of the drawing.
    """
    x_values = [x for line in lines for x in line.xs]
    x = Scale(min(x_values), max(max(x_values), min(x_values) + 1e-9), 46, width - 12)
    low, high = y_range or rounded_range([y for line in lines for y in line.ys])
    y = Scale(low, high, height - 44, 42)
    raw = [_curve(x, y, line.xs, line.raw, f"raw {line.series}") for line in lines if line.raw]
    drawn = [_curve(x, y, line.xs, line.ys, f"line {line.series}", line.name) for line in lines]
    content = join(
        [
            text(0, 16, title, class_="name"),
            y_axis(y, x.start, x.end, percent=percent),
            x_axis(x, y.start, x_title),
            raw,
            drawn,
            _mark(x, y, *mark) if mark else None,
        ]
    )
    return Chart(title, width, height, content)


def interval_chart(
    title: str,
    rows: Sequence[IntervalRow],
    x_title: str,
    ends: Sequence[float],
    width: float = 400.0,
    label_width: float = 86.0,
) -> Chart:
    """Draw differences with their intervals around zero (a forest plot); hollow marks include zero.

    Args:
        title: What the x axis measures.
        rows: From top to bottom.
        x_title: The unit.
        ends: Values that the x axis must hold, those of the rows included.
        width: Of the drawing.
        label_width: What of it is left for the labels.
    """
    low, high = rounded_range([0.0, *ends])
    row_height, top = 40.0, 30.0
    bottom = top + row_height * len(rows)
    x = Scale(low, high, label_width, width - 108)
    grid = [
        tag("line", x1=x(v), x2=x(v), y1=top, y2=bottom, class_="grid") for v in ticks(low, high)
    ]
    zero = tag("line", x1=x(0), x2=x(0), y1=top, y2=bottom, class_="zero")
    drawn = [
        _interval_row(row, x, top + row_height * (i + 0.5), width) for i, row in enumerate(rows)
    ]
    content = [
        text(0, 16, title, class_="name"),
        grid,
        zero,
        x_axis(x, bottom, x_title, 4, sign=True),
        drawn,
    ]
    return Chart(title, width, bottom + 38, join(content))


def histogram_chart(
    title: str,
    edges: Sequence[float],
    groups: Sequence[Histogram],
    x_title: str,
    mark: tuple[float, str] | None = None,
    width: float = 400.0,
    height: float = 230.0,
) -> Chart:
    """Draw histograms over each other, each as shares of its own group: a small one shows too.

    Args:
        title: What the y axis measures.
        edges: Of the bins, one more than counts.
        groups: With at least one count above zero each.
        x_title: What the x axis measures.
        mark: An x to mark, and its name.
        width: Of the drawing.
        height: Of the drawing.
    """
    shares = [[count / sum(group.counts) for count in group.counts] for group in groups]
    x = Scale(edges[0], edges[-1], 46, width - 12)
    y = Scale(0.0, rounded_range([0.0, *(s for row in shares for s in row)])[1], height - 44, 42)
    drawn = [_steps(group, row, edges, x, y) for group, row in zip(groups, shares, strict=True)]
    frame = [
        text(0, 16, title, class_="name"),
        y_axis(y, x.start, x.end, percent=True),
        x_axis(x, y.start, x_title),
    ]
    return Chart(title, width, height, join([frame, drawn, _mark(x, y, *mark) if mark else None]))


def bar_chart(
    title: str,
    bars: Sequence[Bar],
    label_width: float = 130.0,
    note_width: float = 84.0,
    width: float = 400.0,
    longest: float | None = None,
) -> Chart:
    """Draw horizontal bars from a common zero.

    Args:
        title: What the length measures.
        bars: From top to bottom; lengths are not negative.
        label_width: Room for the labels.
        note_width: Room behind the longest bar.
        width: Of the drawing.
        longest: The length that fills the room; else that of the longest bar.
    """
    longest = longest or max(sum(value for _, value in bar.segments) for bar in bars)
    x = Scale(0.0, longest or 1.0, label_width, width - note_width)
    drawn = [_bar(bar, x, 32 + 26 * index) for index, bar in enumerate(bars)]
    return Chart(
        title, width, 36 + 26 * len(bars), join([text(0, 16, title, class_="name"), drawn])
    )


def _curve(
    x: Scale, y: Scale, xs: Sequence[float], ys: Sequence[float], class_: str, name: str = ""
) -> Markup:
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys, strict=True))
    return tag("polyline", tag("title", name) if name else None, points=points, class_=class_)


def _mark(x: Scale, y: Scale, value: float, name: str) -> Markup:
    """Mark an x by a line, and name it above the frame, where no curve passes."""
    line = tag("line", x1=x(value), x2=x(value), y1=y.start, y2=y.end, class_="mark")
    return join([line, text(x(value), y.end - 4, name, "middle", "tick")])


def _interval_row(row: IntervalRow, x: Scale, y: float, width: float) -> Markup:
    included = row.low <= 0 <= row.high
    return tag(
        "g",
        tag("title", f"{row.label}: {row.value_text} ({row.interval_text})"),
        text(0, y + 4, row.label),
        text(width, y - 2, row.value_text, "end", "name"),
        text(width, y + 14, row.interval_text, "end", "tick"),
        tag("line", x1=x(row.low), x2=x(row.high), y1=y, y2=y, class_="whisker"),
        tag("circle", cx=x(row.value), cy=y, r=5, class_="dot hollow" if included else "dot"),
        class_=row.series,
    )


def _steps(
    group: Histogram, shares: Sequence[float], edges: Sequence[float], x: Scale, y: Scale
) -> Markup:
    corners = [(x(edges[0]), y.start)]
    for left, right, share in zip(edges, edges[1:], shares, strict=False):
        corners += [(x(left), y(share)), (x(right), y(share))]
    corners.append((x(edges[-1]), y.start))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    return tag("polygon", tag("title", group.name), points=points, class_=f"area {group.series}")


def _bar(bar: Bar, x: Scale, top: float) -> Markup:
    parts, start = [], 0.0
    for series, value in bar.segments:
        width = x(start + value) - x(start)
        parts.append(
            tag("rect", x=x(start), y=top, width=max(width, 0.5), height=16, class_=f"bar {series}")
        )
        start += value
    end = start
    if bar.interval:
        end = max(end, bar.interval[1])
        parts.append(
            tag(
                "path",
                d=_error_bar(x(bar.interval[0]), x(bar.interval[1]), top + 8),
                class_="error",
            )
        )
    return tag(
        "g",
        tag("title", bar.name or f"{bar.label}: {bar.note}"),
        text(x.start - 8, top + 12, bar.label, "end"),
        parts,
        text(x(end) + 7, top + 12, bar.note, class_="figures"),
    )


def _error_bar(low: float, high: float, y: float) -> str:
    return f"M{low:.1f},{y - 3:.1f}v6m0,-3H{high:.1f}m0,-3v6"
