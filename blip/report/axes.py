"""Scales, ticks and the frame that the charts of the report share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blip.report.markup import Markup, join, tag


@dataclass(frozen=True)
class Chart:
    """A drawing of known size, in units that are CSS pixels at natural size.

    Attributes:
        label: What it shows, in words, for those who cannot see it.
        width: Of the drawing.
        height: Of the drawing.
        content: SVG elements.
    """

    label: str
    width: float
    height: float
    content: Markup

    def svg(self, x: float | None = None, y: float | None = None) -> Markup:
        """Give the `<svg>` element; `x` and `y` place it, at natural size, inside another."""
        placed = {} if x is None else {"x": x, "y": y, "width": self.width, "height": self.height}
        return tag(
            "svg",
            tag("title", self.label),
            self.content,
            viewBox=f"0 0 {self.width:g} {self.height:g}",
            role="img",
            style=f"--natural: {self.width:g}px",
            **placed,
        )


@dataclass(frozen=True)
class Scale:
    """A linear map from values to positions."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Give the position of a value; one outside the range lies on the border."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def rounded_range(values: Sequence[float], about: int = 4) -> tuple[float, float]:
    """Give the range of the values, widened to the next tick on both sides."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    for _ in range(2):  # a range that was widened may have coarser ticks
        step = _step(low, high, about)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return low, high


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Give about that many round values within a range."""
    step = _step(low, high, about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float, all_ticks: Sequence[float], sign: bool = False) -> str:
    """Write a tick with the decimals that tell it from its neighbour."""
    step = all_ticks[1] - all_ticks[0] if len(all_ticks) > 1 else abs(value) or 1.0
    return number(
        value, next(d for d in range(16) if abs(round(step, d) - step) < step / 1e6), sign
    )


def number(value: float, decimals: int, sign: bool = False) -> str:
    """Write a number for people: a real minus sign, none for what rounds to 0, thousands apart.

    Args:
        value: The number.
        decimals: After the point.
        sign: Whether to write a plus sign, too.
    """
    rounded = round(value, decimals) or 0.0  # or: not -0.0
    written = f"{rounded:+,.{decimals}f}" if sign and rounded else f"{rounded:,.{decimals}f}"
    return written.replace("-", "\N{MINUS SIGN}").replace(",", "\N{NARROW NO-BREAK SPACE}")


def text(
    x: float, y: float, content: str, anchor: str = "start", class_: str | None = None
) -> Markup:
    """Give a text that starts, ends or is centred (`middle`) at a point."""
    return tag(
        "text", content, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_
    )


def x_axis(scale: Scale, y: float, title: str, about: int = 5, sign: bool = False) -> Markup:
    """Give the ticks' texts below `y`, and the axis' title under their right end."""
    values = ticks(scale.low, scale.high, about)
    labels = [text(scale(v), y + 16, tick_text(v, values, sign), "middle", "tick") for v in values]
    return join([labels, text(scale.end, y + 33, title, "end", "tick") if title else None])


def y_axis(scale: Scale, x: float, end: float, about: int = 4, percent: bool = False) -> Markup:
    """Give horizontal grid lines from `x` to `end` with the ticks' texts left of them."""
    values = ticks(scale.low, scale.high, about)
    shown = [
        tick_text(v * 100, [t * 100 for t in values]) + "%" if percent else tick_text(v, values)
        for v in values
    ]
    return join(
        [
            tag("line", x1=x, x2=end, y1=scale(v), y2=scale(v), class_="grid"),
            text(x - 7, scale(v) + 4, s, "end", "tick"),
        ]
        for v, s in zip(values, shown, strict=True)
    )


def _step(low: float, high: float, about: int) -> float:
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    return next(
        power * factor for factor in (1, 2, 2.5, 5, 10) if raw <= power * factor * (1 + 1e-9)
    )
