"""Markup escapes by construction."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from blip.report.markup import Markup, join, tag


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = tag("b", "<script>")
    assert tag("p", "a < b", inner) == "<p>a &lt; b<b>&lt;script&gt;</b></p>"
    assert join(["<", [Markup("<br>"), None], 1.50, 2]) == "&lt;<br>1.52"


def test_attributes() -> None:
    found = tag("img", src='x" onerror="y', class_="a", stroke_width=1 / 3, title=None)
    assert found == '<img src="x&quot; onerror=&quot;y" class="a" stroke-width="0.33">'


@given(st.text().filter(lambda t: "\r" not in t and "\x00" not in t))
def test_a_reader_gets_the_text_back(content: str) -> None:
    reader = Reader()
    reader.feed(tag("p", content, title=content))
    reader.close()
    assert reader.tags == [("p", {"title": content})]
    assert reader.text == content
