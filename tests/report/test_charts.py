"""Charts: right places, well-formed, nothing outside the drawing."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.report.axes import Chart, Scale, number, rounded_range, tick_text, ticks
from blip.report.charts import (
    Bar,
    Histogram,
    IntervalRow,
    Line,
    bar_chart,
    histogram_chart,
    interval_chart,
    line_chart,
)
from blip.report.figure import Figure

values = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-6)


def elements(chart: Chart, name: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(chart.svg()).iter(name))


@given(st.lists(values, min_size=1), st.integers(2, 8))
def test_range_holds_the_values_and_ends_on_ticks(numbers: list[float], about: int) -> None:
    low, high = rounded_range(numbers, about)
    rounding = 1e-6 * (high - low)
    assert low - rounding <= min(numbers) <= max(numbers) <= high + rounding
    found = ticks(low, high, about)
    assert 2 <= len(found) <= 2 * about + 2
    texts = [tick_text(tick, found) for tick in found]
    assert len(set(texts)) == len(texts)  # neighbours can be told apart


def test_numbers_for_people() -> None:
    assert number(-1234.56, 1) == "\N{MINUS SIGN}1\N{NARROW NO-BREAK SPACE}234.6"
    assert [tick_text(t, [0, 0.25, 0.5], sign=True) for t in (-0.25, -1e-12, 0.25)] == [
        "\N{MINUS SIGN}0.25", "0.00", "+0.25",
    ]  # fmt: skip
    assert Scale(0, 10, 100, 200)(5) == 150
    assert Scale(0, 10, 200, 100)(20) == 100


def test_lines_are_drawn_in_place() -> None:
    line = Line("a", "series-blue", [0, 5, 10], [0.0, 0.5, 1.0], [0.0, 9.0, 1.0])
    chart = line_chart("loss", [line], "step", (0.0, 1.0), (5.0, "here"), width=300, height=200)
    raw, strong = elements(chart, "polyline")
    points = [tuple(map(float, p.split(","))) for p in strong.attrib["points"].split()]
    assert points == [(46, 156), (167, 99), (288, 42)]
    assert "167.0,42.0" in raw.attrib["points"]  # an outlier ends at the border
    assert any(e.attrib.get("class") == "mark" for e in elements(chart, "line"))


def test_an_interval_around_zero_is_hollow() -> None:
    rows = [
        IntervalRow("A", "series-blue", 10.0, 5.0, 15.0, "+10", "+5 to +15"),
        IntervalRow("B", "series-slate", 1.0, -1.0, 3.0, "+1", "-1 to +3"),
    ]
    chart = interval_chart("gain", rows, "points", [-1, 40])
    assert [e.attrib["class"] for e in elements(chart, "circle")] == ["dot", "dot hollow"]
    assert "+40" in [e.text for e in elements(chart, "text")]


def test_histograms_are_shares_of_their_group() -> None:
    groups = [Histogram("few", "series-blue", [1, 1]), Histogram("many", "series-orange", [0, 300])]
    chart = histogram_chart("share", [0, 0.5, 1], groups, "score")
    few, many = (e.attrib["points"].split() for e in elements(chart, "polygon"))
    heights = [{float(p.split(",")[1]) for p in points} for points in (few, many)]
    floor, top = 186.0, 42.0
    assert heights == [{floor, (floor + top) / 2}, {floor, top}]


def test_bars_are_as_long_as_they_say() -> None:
    bars = [
        Bar("one", [("series-blue", 3.0), ("faint", 1.0)], "4"),
        Bar("two", [("series-blue", 2.0)], "2", (1.0, 3.0)),
    ]
    chart = bar_chart("length", bars, label_width=100, note_width=100, width=400)
    assert [float(e.attrib["width"]) for e in elements(chart, "rect")] == [150, 50, 100]
    assert [e.attrib["class"] for e in elements(chart, "path")] == ["error"]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_picture_stands_alone(count: int) -> None:
    line = Line("a", "series-blue", [0, 1], [0.0, 1.0])
    charts = [line_chart(f"<{i}>", [line], "step", width=300, height=200) for i in range(count)]
    legend = [("series-blue", "a long name & more")] * 5
    figure = Figure("test", charts, legend, columns=2)
    root = ElementTree.fromstring(figure.picture())
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    inner = list(root.iter("{http://www.w3.org/2000/svg}svg"))[1:]
    assert len(inner) == count
    for chart in inner:
        assert float(chart.attrib["x"]) + 300 <= width
        assert float(chart.attrib["y"]) + 200 <= height
    assert height == pytest.approx(20 * 2 + 32 + math.ceil(count / 2) * 214 - 14 + 20 * 2, abs=41)
    assert "prefers-color-scheme: dark" in "".join(root.itertext())
