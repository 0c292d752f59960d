"""Figures: charts that belong together, as part of the page and as a picture of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blip.report.axes import Chart, text
from blip.report.markup import Markup, join, tag

CHART_STYLE = Path(__file__).parent / "chart.css"

_GAP = 28.0
_MARGIN = 20.0
_LETTER = 7.3  # about the width of one, at the charts' 13 px


@dataclass(frozen=True)
class Figure:
    """Charts with a shared legend.

    Attributes:
        name: Of the picture's file.
        charts: At least one, of equal width.
        legend: (series, text) of each colour.
        columns: Of the picture; in the page the charts flow.
        caption: What to see, and how it was measured.
    """

    name: str
    charts: Sequence[Chart]
    legend: Sequence[tuple[str, str]] = ()
    columns: int = 2
    caption: Markup | str = ""

    def html(self) -> Markup:
        """Give the figure as part of the page."""
        entries = [tag("li", tag("i", class_=series), name) for series, name in self.legend]
        return tag(
            "figure",
            tag("ul", entries, class_="legend") if entries else None,
            tag("div", [chart.svg() for chart in self.charts], class_="charts"),
            tag("figcaption", self.caption) if self.caption else None,
        )

    def picture(self) -> str:
        """Give the figure as an SVG file of its own: legend on top, charts row by row, colours."""
        columns = min(self.columns, len(self.charts))
        width = (
            _MARGIN * 2 + sum(chart.width for chart in self.charts[:columns]) + _GAP * (columns - 1)
        )
        legend, top = self._legend(width)
        placed = []
        for start in range(0, len(self.charts), columns):
            row = self.charts[start : start + columns]
            placed += [c.svg(_MARGIN + i * (c.width + _GAP), top) for i, c in enumerate(row)]
            top += max(chart.height for chart in row) + _GAP / 2
        height = top + _MARGIN - _GAP / 2
        return tag(
            "svg",
            tag("title", ", ".join(chart.label for chart in self.charts)),
            tag("style", Markup(CHART_STYLE.read_text(encoding="utf-8"))),
            tag("rect", width=width, height=height, rx=8, class_="ground"),
            legend,
            placed,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:g} {height:g}",
            width=width,
            height=height,
            role="img",
        )

    def _legend(self, width: float) -> tuple[Markup, float]:
        """Give the legend and where the charts begin."""
        if not self.legend:
            return Markup(), _MARGIN
        drawn, x, y = [], _MARGIN, _MARGIN
        for series, name in self.legend:
            needed = 18 + len(name) * _LETTER + 18
            if x > _MARGIN and x + needed > width - _MARGIN:
                x, y = _MARGIN, y + 20
            drawn.append(tag("rect", x=x, y=y, width=12, height=12, rx=3, class_=f"bar {series}"))
            drawn.append(text(x + 18, y + 11, name))
            x += needed
        return join(drawn), y + 32


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        name: Its anchor.
        title: Its heading.
        content: What stands under the heading.
        figures: Those within the content, to be written as pictures too.
    """

    name: str
    title: str
    content: Markup
    figures: Sequence[Figure] = ()
