"""HTML and SVG from nested calls, where everything is escaped unless it was made here."""

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

NOTHING = "\N{EN DASH}"  # what stands where there is no value

_WITHOUT_END = frozenset({"br", "img", "meta"})


class Markup(str):
    """Text that is markup already and stands as it is."""

    __slots__ = ()


Content: TypeAlias = "Markup | str | int | float | Iterable[Content] | None"


def tag(name: str, *content: Content, **attributes: str | int | float | None) -> Markup:
    """Give one element.

    Args:
        name: Of the element.
        content: Its children in order: markup, or text and numbers, which are escaped, or None.
        attributes: A trailing underscore is dropped (`class_`), others become hyphens
            (`stroke_width`); one that is None is left out.
    """
    values = (
        f' {_attribute(n)}="{escape(_text(v))}"' for n, v in attributes.items() if v is not None
    )
    start = f"<{name}{''.join(values)}>"
    return Markup(start if name in _WITHOUT_END else f"{start}{join(content)}</{name}>")


def join(content: Content) -> Markup:
    """Give the markup of nested content, one after the other."""
    match content:
        case None:
            return Markup()
        case Markup():
            return content
        case str() | int() | float():
            return Markup(escape(_text(content)))
        case _:
            return Markup("".join(join(child) for child in content))


def _attribute(name: str) -> str:
    return name.removesuffix("_").replace("_", "-")


def _text(value: str | int | float) -> str:
    """Give a number with two decimals at most: coordinates need no more."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
