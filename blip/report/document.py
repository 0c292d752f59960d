"""A page that opens from disk: everything it shows is in the one file."""

from pathlib import Path
from string import Template

from blip.report.figure import CHART_STYLE
from blip.report.markup import Markup, join

_FOLDER = Path(__file__).parent


def to_document(title: str, body: Markup) -> str:
    """Give a page as HTML, with the style of our pages and charts."""
    template = Template((_FOLDER / "page.html").read_text(encoding="utf-8"))
    styles = (_FOLDER / "page.css", CHART_STYLE)
    style = "".join(path.read_text(encoding="utf-8") for path in styles)
    return template.substitute(title=join(title), style=style, body=body)
