"""Images with their web and synthetic texts, and what the filter made of them: right and wrong verdicts alike."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from blip.data.dataset import Shard, iterate_rows, open_dataset
from blip.data.images import ShardImages, decode_image
from blip.data.phrases import judge
from blip.data.truth import Truth
from blip.report.figure import Section
from blip.report.markup import Markup, join, tag

PER_GROUP = 4
_MOST_TEXTS = 50_000  # how far to look for examples
_LARGEST = 24_000  # bytes of an image that goes into the page as it is
_SIDE = 320  # pixels of one that is made smaller


@dataclass(frozen=True)
class Example:
    """An image with its judged texts.

    Attributes:
        shard: Where it lies.
        row: In the shard.
        key: Of the image.
        texts: Caption rows by origin, each with its `kind` if the truth about it is known.
    """

    shard: Shard
    row: int
    key: str
    texts: Mapping[str, Mapping[str, Any]]

    def has(self, origin: str, kept: bool, clean: bool | None = None) -> bool:
        """Tell whether its text of that origin got that verdict, and (unless None) is clean or not."""
        text = self.texts.get(origin)
        if text is None or text["kept"] is not kept:
            return False
        return clean is None or (text["kind"] is not None and (text["kind"] == CLEAN) is clean)


CLEAN = "clean"

_Group = tuple[str, str, Callable[[Example], bool]]

_WITH_TRUTH: Sequence[_Group] = (
    ("Clean web texts, kept", "right", lambda e: e.has("web", True, clean=True)),
    ("Noise, dropped", "right", lambda e: e.has("web", False, clean=False)),
    ("Clean web texts, dropped", "wrong: lost for training", lambda e: e.has("web", False, clean=True)),
    ("Noise, kept", "wrong: slipped through", lambda e: e.has("web", True, clean=False)),
)
_WITHOUT_TRUTH: Sequence[_Group] = (
    ("Web texts, kept", "", lambda e: e.has("web", True)),
    ("Web texts, dropped", "", lambda e: e.has("web", False)),
)
_SYNTHETIC: Sequence[_Group] = (
    ("Synthetic texts, kept", "", lambda e: e.has("synthetic", True)),
    ("Synthetic texts, dropped", "", lambda e: e.has("synthetic", False)),
)


def gallery_section(data: Path, truths: Sequence[Truth], max_pixels: int) -> Section | None:
    """Show examples of every kind of verdict; None where there is no judged version.

    Args:
        data: The version with the verdicts.
        truths: What is known of texts and images; empty where nothing is.
        max_pixels: The largest image to decode.
    """
    if not data.exists():
        return None
    examples = read_examples(data, truths)
    groups = [*(_WITH_TRUTH if truths else _WITHOUT_TRUTH), *_SYNTHETIC]
    used: set[str] = set()
    shown = []
    for title, remark, belongs in groups:
        chosen = choose([e for e in examples if e.key not in used and belongs(e)], PER_GROUP)
        used |= {example.key for example in chosen}
        if chosen:
            heading = tag("h3", title, tag("small", f" {remark}") if remark else None)
            shown.append([heading, tag("div", [_card(e, max_pixels) for e in chosen], class_="gallery")])
    if not shown:
        return None
    lead = tag("p", "Examples are taken by the digest of the image, not by hand. The number is the match probability.")
    return Section("gallery", "What CapFilt did", join([lead, shown]))


def read_examples(data: Path, truths: Sequence[Truth]) -> list[Example]:
    """Read the images with judged texts, from the first shards on until there are enough to choose from."""
    kind_of = _Kinds(truths)
    found: list[Example] = []
    texts_read = 0
    for shard in open_dataset(data).shards:
        texts: dict[str, dict[str, dict[str, Any]]] = {}
        for row in iterate_rows(shard.read_captions()):
            if row["kept"] is not None:
                texts.setdefault(row["key"], {}).setdefault(row["origin"], row)
        for i, record in enumerate(iterate_rows(shard.read_records())):
            if record["key"] in texts:
                of_image = {o: {**r, "kind": kind_of(record["source"], r)} for o, r in texts[record["key"]].items()}
                found.append(Example(shard, i, record["key"], of_image))
        texts_read += shard.num_captions
        if texts_read > _MOST_TEXTS:
            break
    return found


def choose(examples: Sequence[Example], number: int) -> list[Example]:
    """Choose examples by the digest of their image, different kinds of web text in turn."""
    seen: Counter[str | None] = Counter()
    ranked = []
    for example in sorted(examples, key=lambda e: e.key):
        kind = example.texts["web"]["kind"] if "web" in example.texts else None
        ranked.append((seen[kind], len(ranked), example))
        seen[kind] += 1
    return [example for *_, example in sorted(ranked, key=lambda r: r[:2])[:number]]


def image_uri(data: bytes, extension: str, max_pixels: int) -> str:
    """Give an image as a data URI, made smaller where it is too large for a page.

    Raises:
        DataError: It cannot be decoded.
    """
    if len(data) <= _LARGEST and extension in ("png", "jpg", "jpeg", "webp", "gif"):
        kind = "jpeg" if extension == "jpg" else extension
    else:
        pixels = decode_image(data, max_pixels).permute(1, 2, 0).contiguous().numpy()  # (H, W, 3)
        image, file = Image.fromarray(pixels), io.BytesIO()
        image.thumbnail((_SIDE, _SIDE))
        image.save(file, "JPEG", quality=80)
        data, kind = file.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class _Kinds:
    """What is true of the texts of an image: `clean`, the kind of noise, or what of it is wrong."""

    def __init__(self, truths: Sequence[Truth]) -> None:
        self._kinds = {(truth.source, truth.text): truth.kind for truth in truths}
        self._scenes = {truth.source: truth.scene for truth in truths if truth.scene}

    def __call__(self, source: str, caption: Mapping[str, Any]) -> str | None:
        known = self._kinds.get((source, caption["text"]))
        scene = self._scenes.get(source)
        if known is not None or scene is None:
            return known
        verdict = judge(scene, caption["text"])
        wrong = [attribute for attribute, true in verdict.items() if not true]
        if not verdict:
            return "says nothing"
        return f"wrong {', '.join(wrong)}" if wrong else CLEAN


def _card(example: Example, max_pixels: int) -> Markup:
    extension = example.shard.read_records()["extension"][example.row].as_py()
    data = ShardImages(example.shard).read(example.row)
    texts = [_text(origin, example.texts[origin]) for origin in ("web", "synthetic") if origin in example.texts]
    image = tag("img", src=image_uri(data, extension, max_pixels), alt="", loading="lazy")
    return tag("article", image, tag("div", texts), class_="example")


def _text(origin: str, text: Mapping[str, Any]) -> Markup:
    kept, kind = text["kept"], text["kind"]
    score = f" {text['itm_score']:.2f}" if text["itm_score"] is not None else ""
    verdict = tag("b", f"{'✓ kept' if kept else '✕ dropped'}{score}", class_="kept" if kept else "dropped")
    truth = tag("small", kind) if kind else None
    return tag("p", tag("small", tag("span", origin), verdict), tag("q", text["text"]), truth)
