"""Blocks of a collection: neighbouring records, checked by themselves, and stored as one shard.

A block needs no other, so that several processes may do some each. What takes all of them together
is settled when they are put together (`blip.data.ingest`): whether an image came before.

    runs/ingest-<key16>/shards/000012/
      manifest.json, images/, records/, captions/    a dataset version of one shard, or none
      verdicts.jsonl                                 one line a record (`Verdict`)
"""

import itertools
import json
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from blip.config import Ingest, Source
from blip.data.dataset import (
    CAPTIONS,
    RECORDS,
    Shard,
    caption_id,
    iterate_rows,
    open_dataset,
    write_manifest,
    write_table,
)
from blip.data.image_store import ImageStore
from blip.data.images import OversizedImageError, ShardImages, decode_pixels, read_header
from blip.data.sources import SourceRecord
from blip.data.tar import TarWriter
from blip.errors import DataError
from blip.files import new_directory
from blip.progress import Progress

VERDICTS = "verdicts.jsonl"
SHOWN = 200  # characters of a value that broke a rule


class Fault(NamedTuple):
    """A rule that an image or one of its captions broke, and the value that did."""

    what: Literal["image", "caption"]
    value: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What became of a record.

    Attributes:
        source: The name of its image in the collection.
        kind: That of its captions, see `SourceRecord`.
        key: That of its image, where there is one that can be decoded.
        faults: What is wrong with it; a record whose image has none is taken in.
    """

    source: str
    kind: str
    key: str | None
    faults: tuple[Fault, ...]

    @property
    def accepted(self) -> bool:
        """Whether it is taken in, with those captions that have no fault."""
        return all(fault.what != "image" for fault in self.faults)

    def repeated(self) -> "Verdict":
        """Give the verdict on it where its image was taken in before: nothing else counts."""
        assert self.key is not None
        return replace(self, faults=(Fault("image", self.key, "duplicate"),))


class Block(NamedTuple):
    """A block that is finished; `shard` is None where nothing was taken in."""

    verdicts: list[Verdict]
    shard: Shard | None


@dataclass(frozen=True)
class StoredImage:
    """An image as a shard holds it, with its captions."""

    source: str
    key: str
    data: bytes
    width: int
    height: int
    extension: str
    captions: list[str]


def split_blocks(records: Iterable[SourceRecord], size: int) -> Iterator[list[SourceRecord]]:
    """Cut records into blocks of neighbours of one collection, `size` of them at most."""
    for _, same in itertools.groupby(records, key=lambda record: record.collection):
        while block := list(itertools.islice(same, size)):
            yield block


def write_block(
    config: Ingest,
    source: Source,
    records: list[SourceRecord],
    store: ImageStore,
    folder: Path,
    progress: Progress,
) -> None:
    """Check the records of a block and store what passes.

    Raises:
        DataError: An image is there but cannot be read, or the disk is full.
    """
    verdicts: list[Verdict] = []
    images = _accept(config, records, store, verdicts, progress)
    with new_directory(folder) as out:
        shards = []
        for first in images:
            shard = write_shard(itertools.chain([first], images), source.origin, out)
            shards.append(replace(shard, collection=records[0].collection))
        write_manifest(out, shards, {}, {})
        with (out / VERDICTS).open("w") as file:
            for verdict in verdicts:
                file.write(json.dumps([verdict.source, verdict.kind, verdict.key, verdict.faults]))
                file.write("\n")


def read_block(folder: Path) -> Block:
    """Read a block that is finished."""
    verdicts = []
    with (folder / VERDICTS).open() as file:
        for source, kind, key, faults in map(json.loads, file):
            verdicts.append(Verdict(source, kind, key, tuple(Fault(*fault) for fault in faults)))
    return Block(verdicts, next(iter(open_dataset(folder).shards), None))


def stored_images(shard: Shard, keys: Collection[str | None]) -> Iterator[StoredImage]:
    """Give those images of a shard that have one of the keys."""
    texts: dict[str, list[str]] = {}
    for row in iterate_rows(shard.read_captions()):
        texts.setdefault(row["key"], []).append(row["text"])
    contents = ShardImages(shard)
    for number, row in enumerate(iterate_rows(shard.read_records())):
        if (key := row["key"]) in keys:
            yield StoredImage(
                source=row["source"],
                key=key,
                data=contents.read(number),
                width=row["width"],
                height=row["height"],
                extension=row["extension"],
                captions=texts[key],
            )


def write_shard(images: Iterable[StoredImage], origin: str, out: Path) -> Shard:
    """Write one shard, image by image, and its tables; files are named by the digest of its tar."""
    records: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    partial = out / "images" / "partial"
    partial.parent.mkdir(exist_ok=True)
    with TarWriter(partial) as tar:
        for image in images:
            offset = tar.add(f"{image.key}.{image.extension}", image.data)
            records.append(
                {
                    "key": image.key,
                    "source": image.source,
                    "width": image.width,
                    "height": image.height,
                    "extension": image.extension,
                    "offset": offset,
                    "size": len(image.data),
                }
            )
            for text in image.captions:
                row = {"caption_id": caption_id(image.key, origin, text), "key": image.key}
                captions.append({**row, "text": text, "origin": origin})
    name = tar.digest[:16]
    images_path = out / "images" / f"{name}.tar"
    records_path, captions_path = (out / t / f"{name}.parquet" for t in ("records", "captions"))
    partial.rename(images_path)
    return Shard(
        images=images_path,
        records=records_path,
        captions=captions_path,
        images_digest=tar.digest,
        records_digest=write_table(records_path, pa.Table.from_pylist(records, RECORDS)),
        captions_digest=write_table(captions_path, pa.Table.from_pylist(captions, CAPTIONS)),
        num_images=len(records),
        num_captions=len(captions),
        texts={origin: len(captions)},
    )


def _accept(
    config: Ingest,
    records: list[SourceRecord],
    store: ImageStore,
    verdicts: list[Verdict],
    progress: Progress,
) -> Iterator[StoredImage]:
    """Give what passes the rules; add the verdict on every record."""
    seen: set[str] = set()
    for record in records:
        image = _check_image(config, record, store, seen)
        progress.advance()
        if isinstance(image, Fault):
            key = image.value if image.reason == "duplicate" else None
            verdicts.append(Verdict(record.source, record.kind, key, (image,)))
            continue
        faults = list(_check_captions(config, record, image.captions))
        if not image.captions:
            faults.append(Fault("image", "", "no_caption"))
        verdicts.append(Verdict(record.source, record.kind, image.key, tuple(faults)))
        if image.captions:
            seen.add(image.key)
            yield image


def _check_image(
    config: Ingest, record: SourceRecord, store: ImageStore, seen: set[str]
) -> StoredImage | Fault:
    """Give the image, without captions yet, or what is wrong with it."""
    try:
        data = store.read(record.source)
    except ValueError as error:
        return Fault("image", str(error)[:SHOWN], "unsafe_name")
    if data is None:
        return Fault("image", record.source[:SHOWN], "missing")
    key = sha256(data).hexdigest()
    if key in seen:
        return Fault("image", key, "duplicate")
    try:
        header = read_header(data, config.max_pixels)
        if min(header.width, header.height) < config.min_side:
            return Fault("image", f"{header.width} x {header.height}", "tiny")
        decode_pixels(data, config.max_pixels)
    except OversizedImageError as error:
        return Fault("image", str(error)[:SHOWN], "oversized")
    except DataError as error:
        return Fault("image", str(error)[:SHOWN], "undecodable")
    size = header.width, header.height
    return StoredImage(record.source, key, data, *size, header.extension, [])


def _check_captions(config: Ingest, record: SourceRecord, passed: list[str]) -> Iterator[Fault]:
    """Add the captions that pass, white space made plain; give what is wrong with the others."""
    for caption in record.captions:
        text = " ".join(caption.split())
        reason = _fault(config, text) or ("duplicate" if text in passed else None)
        if reason:
            yield Fault("caption", caption[:SHOWN], reason)
        else:
            passed.append(text)


def _fault(config: Ingest, text: str) -> str | None:
    if not text:
        return "empty"
    # Cc: control characters. Cs: halves of characters, which no file can hold.
    if not text.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        return "control_characters"
    words = text.count(" ") + 1
    if words < config.min_words:
        return "too_short"
    return "too_long" if words > config.max_words else None
