"""Images whose texts the filter has judged, chosen by rule, as examples for people."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from blip.data.dataset import iterate_rows, open_dataset
from blip.data.images import ShardImages, decode_image
from blip.data.scenes import Scene
from blip.data.statements import judge
from blip.data.truth import Truth

CLEAN = "clean"

_MOST_TEXTS = 50_000  # how far to look for examples
_LARGEST = 24_000  # bytes of an image that goes into the page as it is
_SIDE = 320  # pixels of one that is made smaller


@dataclass(frozen=True)
class Example:
    """An image with its judged texts.

    Attributes:
        images: The shard where it lies.
        row: In the shard.
        record: Its row in the records.
        texts: Caption rows by origin, each with its `kind`: what is known of its truth, or None.
    """

    images: ShardImages
    row: int
    record: Mapping[str, Any]
    texts: Mapping[str, Mapping[str, Any]]

    @property
    def key(self) -> str:
        """Digest of the image."""
        return str(self.record["key"])

    def has(self, origin: str, kept: bool, clean: bool | None = None) -> bool:
        """Tell whether its text of that origin got that verdict, and (unless None) is clean."""
        text = self.texts.get(origin)
        if text is None or text["kept"] is not kept:
            return False
        return clean is None or (text["kind"] is not None and (text["kind"] == CLEAN) is clean)

    def image_uri(self, max_pixels: int) -> str:
        """Give the image as a data URI.

        Raises:
            DataError: It was changed, or cannot be decoded.
        """
        return image_uri(self.images.read(self.row), self.record["extension"], max_pixels)


def image_uri(data: bytes, extension: str, max_pixels: int) -> str:
    """Give an image as a data URI, made smaller where it is too large for a page.

    Raises:
        DataError: It cannot be decoded, or has more than `max_pixels`.
    """
    kind = "jpeg" if extension == "jpg" else extension
    if len(data) > _LARGEST or kind == "bmp":
        pixels = decode_image(data, max_pixels).permute(1, 2, 0).contiguous().numpy()  # (H, W, 3)
        image, file = Image.fromarray(pixels), io.BytesIO()
        image.thumbnail((_SIDE, _SIDE))
        image.save(file, "JPEG", quality=80)
        data, kind = file.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def read_examples(data: Path, truths: Sequence[Truth]) -> list[Example]:
    """Read images with judged texts, from the first shards on until there are enough to choose."""
    kinds = {(truth.source, truth.text.strip()): truth.kind for truth in truths}
    scenes = {truth.source: truth.scene for truth in truths if truth.scene}

    def kind(source: str, text: str) -> str | None:
        known = kinds.get((source, text.strip()))
        return _judgement(scenes[source], text) if known is None and source in scenes else known

    found: list[Example] = []
    texts_read = 0
    for shard in open_dataset(data).shards:
        images = ShardImages(shard)
        texts: dict[str, dict[str, dict[str, Any]]] = {}
        for row in iterate_rows(shard.read_captions()):
            if row["kept"] is not None:
                texts.setdefault(row["key"], {}).setdefault(row["origin"], row)
        for i, record in enumerate(iterate_rows(shard.read_records())):
            of_image = texts.get(record["key"], {})
            judged = {
                o: {**r, "kind": kind(record["source"], r["text"])} for o, r in of_image.items()
            }
            if judged:
                found.append(Example(images, i, record, judged))
        texts_read += shard.num_captions
        if texts_read > _MOST_TEXTS:
            break
    return found


def choose(examples: Sequence[Example], number: int) -> list[Example]:
    """Choose examples by the digest of their image, different kinds of web text in turn."""
    seen: Counter[str | None] = Counter()
    ranked: list[tuple[int, int, Example]] = []
    for example in sorted(examples, key=lambda e: e.key):
        kind = example.texts["web"]["kind"] if "web" in example.texts else None
        ranked.append((seen[kind], len(ranked), example))
        seen[kind] += 1
    return [example for *_, example in sorted(ranked, key=lambda r: r[:2])[:number]]


def _judgement(scene: Scene, text: str) -> str:
    """Say what of a text is wrong."""
    verdict = judge(scene, text)
    wrong = [attribute for attribute, true in verdict.items() if not true]
    if not verdict:
        return "says nothing"
    return f"wrong {', '.join(wrong)}" if wrong else CLEAN
