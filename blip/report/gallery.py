"""Images with their web and synthetic texts, and what the filter made of them, right or wrong."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip.data.truth import Truth
from blip.report.axes import Chart, text
from blip.report.examples import Example, choose, read_examples
from blip.report.figure import Figure, Section
from blip.report.markup import Content, Markup, join, tag

PER_GROUP = 4

_Group = tuple[str, Callable[[Example], bool]]

_WITH_TRUTH: Sequence[_Group] = (
    ("Clean web text, rightly kept", lambda e: e.has("web", True, clean=True)),
    ("Noise, rightly dropped", lambda e: e.has("web", False, clean=False)),
    ("Clean web text, wrongly dropped", lambda e: e.has("web", False, clean=True)),
    ("Noise, wrongly kept", lambda e: e.has("web", True, clean=False)),
)
_WITHOUT_TRUTH: Sequence[_Group] = (
    ("Web text kept", lambda e: e.has("web", True)),
    ("Web text dropped", lambda e: e.has("web", False)),
)
_SYNTHETIC: Sequence[_Group] = (
    ("Synthetic text kept", lambda e: e.has("synthetic", True)),
    ("Synthetic text dropped", lambda e: e.has("synthetic", False)),
)
_ORIGINS = ("web", "synthetic")
_SAID = {
    "mismatch": "of another image",
    **{attribute: f"wrong {attribute}" for attribute in ("colour", "shape", "count", "relation")},
}


def gallery_section(data: Path, truths: Sequence[Truth], max_pixels: int) -> Section | None:
    """Show examples of every kind of verdict; None where there is no judged version.

    Args:
        data: The version with the verdicts.
        truths: What is known of texts and images; empty where nothing is.
        max_pixels: The largest image to decode.
    """
    examples = read_examples(data, truths) if data.exists() else []
    used: set[str] = set()
    shown: list[Content] = []
    charts = []
    for title, belongs in [*(_WITH_TRUTH if truths else _WITHOUT_TRUTH), *_SYNTHETIC]:
        chosen = choose([e for e in examples if e.key not in used and belongs(e)], PER_GROUP)
        used |= {example.key for example in chosen}
        if chosen:
            images = [example.image_uri(max_pixels) for example in chosen]
            cards = [_card(example, uri) for example, uri in zip(chosen, images, strict=True)]
            shown.append([tag("h3", title), tag("div", cards, class_="gallery")])
            charts.append(_drawn_card(title, chosen[0], images[0]))
    if not shown:
        return None
    lead = (
        "Examples are taken by the digest of the image, not by hand. "
        "The number is the match probability, the last line what is known of the truth."
    )
    content = join([tag("p", lead if truths else lead.partition(",")[0] + "."), shown])
    return Section("gallery", "What CapFilt did", content, [Figure("examples", charts)])


def _card(example: Example, uri: str) -> Markup:
    texts = [_text(origin, example.texts[origin]) for origin in _ORIGINS if origin in example.texts]
    image = tag("img", src=uri, alt="", loading="lazy")
    return tag("article", image, tag("div", texts), class_="example")


def _text(origin: str, row: Mapping[str, Any]) -> Markup:
    verdict = tag("b", _verdict(row), class_="kept" if row["kept"] else "dropped")
    truth = tag("small", _truth(row)) if row["kind"] else None
    return tag("p", tag("small", tag("span", origin), verdict), tag("q", row["text"]), truth)


def _drawn_card(title: str, example: Example, uri: str) -> Chart:
    """Draw an example for a picture, where nothing wraps lines for us."""
    drawn = [
        text(0, 16, title, class_="name"),
        tag(
            "image", href=uri, x=0, y=30, width=96, height=96, preserveAspectRatio="xMidYMid slice"
        ),
    ]
    y = 40.0
    for origin in _ORIGINS:
        row = example.texts.get(origin)
        if row is None:
            continue
        drawn.append(text(110, y, origin, class_="tick"))
        drawn.append(text(390, y, _verdict(row), "end", "kept" if row["kept"] else "dropped"))
        for line in textwrap.wrap(row["text"], 36, max_lines=2, placeholder=" …"):
            y += 17
            drawn.append(text(110, y, line))
        if row["kind"]:
            y += 16
            drawn.append(text(110, y, _truth(row), class_="tick"))
        y += 24
    return Chart(title, 400, max(y - 14, 136), join(drawn))


def _verdict(row: Mapping[str, Any]) -> str:
    score = f" {row['itm_score']:.2f}" if row["itm_score"] is not None else ""
    return f"{'✓ kept' if row['kept'] else '✕ dropped'}{score}"


def _truth(row: Mapping[str, Any]) -> str:
    kind = str(row["kind"])
    return _SAID.get(kind, kind)
