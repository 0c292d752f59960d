"""Taking a collection in: every image and caption is checked once, here, and stored for good.

What breaks a rule goes to `quarantine.jsonl` with its reason, one line each:
`{"source", "what": "image" or "caption", "value", "reason"}`. Reasons of images: `unsafe_name`,
`missing`, `oversized`, `undecodable`, `tiny`, `duplicate`, `no_caption`; of captions: `empty`,
`control_characters`, `too_short`, `too_long`, `duplicate`.

An image is known by its bytes. A later record with the bytes of an earlier one is a duplicate as
a whole, its captions included: neighbouring records of one image were joined before, and what is
left are collections that hold an image under two names.
"""

import itertools
import json
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa

from blip.config import Ingest, Source
from blip.data.dataset import CAPTIONS, RECORDS, Shard, caption_id, write_manifest, write_table
from blip.data.images import OversizedImageError, decode_pixels, read_header
from blip.data.sources import ImageStore, SourceRecord, read_records
from blip.data.tar import TarWriter
from blip.data.truth import TRUTH, Truth, write_truth
from blip.errors import DataError
from blip.files import write_json
from blip.progress import Progress
from blip.tracker import Tracker

QUARANTINE = "quarantine.jsonl"
EXAMPLES = 3  # in the message that stops a bad collection


@dataclass(frozen=True)
class _Accepted:
    """An image that passed, with the captions that did."""

    record: SourceRecord
    key: str
    data: bytes
    width: int
    height: int
    extension: str
    captions: list[str]


def ingest(config: Ingest, name: str, out: Path, tracker: Tracker) -> None:
    """Take one collection in as a dataset version.

    Args:
        config: The rules, and the collections by name.
        name: Which collection.
        out: Empty folder; receives `manifest.json`, `images/`, `records/`, `captions/`,
            `quarantine.jsonl`, `metrics.json`, and `truth.jsonl` where captions were mismatched.
        tracker: Told `perf/images_per_second`.

    Raises:
        DataError: A file is missing or malformed, nothing passed, or more than the allowed share
            of images or captions did not.
    """
    source, started = config.sources[name], time.monotonic()
    # A first pass over the annotations finds what is malformed before any image is touched.
    total = sum(1 for _ in read_records(source))
    progress = Progress(f"ingest {name}", total, "images")
    truths: list[Truth] = []
    with ImageStore(Path(source.images)) as store, (out / QUARANTINE).open("w") as file:
        quarantine = _Quarantine(file)
        accepted = _accept(config, read_records(source), store, quarantine, progress)
        shards = list(_write_shards(accepted, config.shard_size, source, out, truths))
    counts = {
        "images": sum(shard.num_images for shard in shards),
        "captions": sum(shard.num_captions for shard in shards),
    }
    quarantine.check(source, counts, config.max_quarantined)
    counts |= quarantine.counts()
    if source.mismatch:
        write_truth(out / TRUTH, truths)
    write_manifest(out, shards, _describe(source), counts)
    write_json(out / "metrics.json", {"ingest": counts})
    tracker.metrics({"perf/images_per_second": total / max(time.monotonic() - started, 1e-9)})


class _Quarantine:
    """What was not taken in, and why."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._examples: list[str] = []

    def add(self, source: str, what: Literal["image", "caption"], value: str, reason: str) -> None:
        """Write one line."""
        line = json.dumps({"source": source, "what": what, "value": value[:200], "reason": reason})
        self._file.write(line + "\n")
        self._reasons[what, reason] += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append(line)

    def counts(self) -> dict[str, int]:
        """Give the numbers to report: of images, of captions, and by reason."""
        reasons = {f"{what}_{why}": count for (what, why), count in sorted(self._reasons.items())}
        return {
            "quarantined_images": self._total("image"),
            "quarantined_captions": self._total("caption"),
            **reasons,
        }

    def check(self, source: Source, taken: dict[str, int], max_share: float) -> None:
        """Hold the shares that were not taken in against the limit."""
        for what in ("image", "caption"):
            bad, good = self._total(what), taken[f"{what}s"]
            if good and bad <= max_share * (good + bad):
                continue
            counts = sorted(self._reasons.items())
            reasons = ", ".join(f"{why}: {count}" for (kind, why), count in counts if kind == what)
            raise DataError(
                f"{source.annotations}: {bad} of {good + bad} {what}s cannot be taken in "
                f"({reasons}), more than ingest.max_quarantined {max_share:g}: mend the "
                f"collection or raise the limit. Examples: {' '.join(self._examples)}"
            )

    def _total(self, what: str) -> int:
        return sum(count for (kind, _), count in self._reasons.items() if kind == what)


def _accept(
    config: Ingest,
    records: Iterable[SourceRecord],
    store: ImageStore,
    quarantine: _Quarantine,
    progress: Progress,
) -> Iterator[_Accepted]:
    """Give what passes the rules; the rest goes to quarantine."""
    seen: set[bytes] = set()  # 32 bytes an image is all that outlives a shard
    for record in records:
        found = _check_image(config, record, store, seen)
        progress.advance()
        if not isinstance(found, _Accepted):
            reason, value = found
            quarantine.add(record.source, "image", value, reason)
            continue
        found.captions.extend(_check_captions(config, record, quarantine))
        if not found.captions:
            quarantine.add(record.source, "image", "", "no_caption")
            continue
        seen.add(bytes.fromhex(found.key))
        yield found


def _check_image(
    config: Ingest, record: SourceRecord, store: ImageStore, seen: set[bytes]
) -> _Accepted | tuple[str, str]:
    """Give the image, without captions yet, or the reason against it and the value."""
    try:
        data = store.read(record.source)
    except ValueError as error:
        return "unsafe_name", str(error)
    if data is None:
        return "missing", record.source
    digest = sha256(data)
    if digest.digest() in seen:
        return "duplicate", digest.hexdigest()
    try:
        header = read_header(data, config.max_pixels)
        if min(header.width, header.height) < config.min_side:
            return "tiny", f"{header.width} x {header.height}"
        decode_pixels(data, config.max_pixels)
    except OversizedImageError as error:
        return "oversized", str(error)
    except DataError as error:
        return "undecodable", str(error)
    size = header.width, header.height
    return _Accepted(record, digest.hexdigest(), data, *size, header.extension, [])


def _check_captions(config: Ingest, record: SourceRecord, quarantine: _Quarantine) -> Iterator[str]:
    """Give the captions that pass, white space made plain."""
    seen: set[str] = set()
    for caption in record.captions:
        text = " ".join(caption.split())
        reason = _fault(config, text) or ("duplicate" if text in seen else None)
        if reason:
            quarantine.add(record.source, "caption", caption, reason)
            continue
        seen.add(text)
        yield text


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


def _write_shards(
    accepted: Iterator[_Accepted], shard_size: int, source: Source, out: Path, truths: list[Truth]
) -> Iterator[Shard]:
    for collection, images in itertools.groupby(accepted, lambda image: image.record.collection):
        for shard in _write_collection(images, shard_size, source, out, truths):
            yield replace(shard, collection=collection)


def _write_collection(
    images: Iterator[_Accepted], shard_size: int, source: Source, out: Path, truths: list[Truth]
) -> Iterator[Shard]:
    for first in images:
        some = itertools.chain([first], itertools.islice(images, shard_size - 1))
        yield _write_shard(some, source, out, truths)


def _write_shard(
    accepted: Iterable[_Accepted], source: Source, out: Path, truths: list[Truth]
) -> Shard:
    """Write one shard, image by image, and its tables."""
    records: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    partial = out / "images" / "partial"
    partial.parent.mkdir(exist_ok=True)
    with TarWriter(partial) as tar:
        for image in accepted:
            record, key = image.record, image.key
            offset = tar.add(f"{key}.{image.extension}", image.data)
            records.append(
                {
                    "key": key,
                    "source": record.source,
                    "width": image.width,
                    "height": image.height,
                    "extension": image.extension,
                    "offset": offset,
                    "size": len(image.data),
                }
            )
            for text in image.captions:
                row = {"caption_id": caption_id(key, source.origin, text), "key": key}
                captions.append({**row, "text": text, "origin": source.origin})
                if source.mismatch:
                    truths.append(Truth(record.source, text, record.kind))
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
        texts={source.origin: len(captions)},
    )


def _describe(source: Source) -> dict[str, Any]:
    """Say where a version came from, without the folders of this machine."""
    description = source.model_dump(mode="json")
    for role in ("annotations", "images", "split"):
        if description[role] is not None:
            description[role] = Path(description[role]).name
    return description
