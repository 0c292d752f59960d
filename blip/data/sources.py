"""Collections as users have them: annotation files of several formats, read as records of one kind.

Everything in them is untrusted. A malformed annotation file is an error that names file, record,
value, rule and remedy; what is wrong with single images and captions is judged in `ingest`.
"""

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip.config import Source
from blip.data.text_records import field, numbered, read_lines, reading
from blip.errors import DataError
from blip.files import read_json

IMAGE_COLUMNS = ("image", "path", "filepath", "file_path", "image_path", "filename", "file_name")
CAPTION_COLUMNS = ("caption", "text", "sentence", "alt_text")


@dataclass(frozen=True)
class SourceRecord:
    """An image of a collection and what was written about it.

    `source` is its name in the image store; `kind` is `clean`, or `mismatch` where the captions
    were taken from another image on purpose. `collection` is the part of a folder of annotations
    that it is from.
    """

    source: str
    captions: tuple[str, ...]
    kind: str = "clean"
    collection: str | None = None


def read_records(source: Source) -> Iterator[SourceRecord]:
    """Read the records of a collection, in the order of its file.

    Of a folder all files are read, in the order of their names; each file, or folder of files, in
    it is a collection of its name. Neighbouring records of one image become one. The split is
    applied first, then `skip` and `limit`, then `captions_per_image`, then `mismatch`. All but COCO
    files (and any with a `mismatch`, which needs them all at hand) are streamed.

    Raises:
        DataError: A file is missing, unreadable or malformed, or nothing is left of it.
    """
    path = Path(source.annotations)
    records = _parse_folder(source.format, path) if path.is_dir() else _parse(source.format, path)
    records = _merge_neighbours(records)
    if source.split is not None:
        records = _keep(records, Path(source.split))
    stop = None if source.limit is None else source.skip + source.limit
    records = itertools.islice(records, source.skip, stop)
    first = next(records, None)
    if first is None:
        if source.split is None and not source.skip:
            raise DataError(f"{path}: holds no record: fetch it again, or name another file")
        raise DataError(
            f"{path}: no record is left after split {source.split!r} and skip {source.skip}: "
            "check that they belong to this file"
        )
    records = itertools.chain([first], records)
    if source.captions_per_image is not None:
        count = source.captions_per_image
        records = (replace(record, captions=record.captions[:count]) for record in records)
    return _mismatch(list(records), source.mismatch) if source.mismatch else records


def _parse_folder(form: str, folder: Path) -> Iterator[SourceRecord]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"{folder}: cannot be read: there is no file in the folder")
    for path in files:
        collection = Path(path.relative_to(folder).parts[0]).stem
        if not collection.isprintable():
            raise DataError(f"{folder}: {collection!r} names a collection: give it a plain name")
        for record in _parse(form, path):
            yield replace(record, collection=collection)


def _parse(form: str, path: Path) -> Iterator[SourceRecord]:
    match form:
        case "blip":
            return parse_blip(path)
        case "coco":
            return _parse_coco(path)
        case "csv" | "tsv":
            return _parse_csv(path, tabs=form == "tsv")
        case "parquet":
            return _parse_parquet(path)
        case "flickr8k":
            return _parse_flickr8k(path)
    raise ValueError(f"no format {form!r}")


def parse_blip(path: Path) -> Iterator[SourceRecord]:
    """`[{"image": name, "caption": text or [text, ...]}, ...]`, as salesforce/BLIP has it."""
    for where, item in numbered(path):
        image = field(item, "image", str, where)
        caption = item.get("caption")
        captions = [caption] if isinstance(caption, str) else caption
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            raise DataError(
                f"{where} ({image}): caption is {caption!r:.80}, it must be a text or a list of "
                "texts: mend or remove the record"
            )
        yield SourceRecord(image, tuple(captions))


def _parse_coco(path: Path) -> Iterator[SourceRecord]:
    """COCO captions: `images` (`id`, `file_name`), `annotations` (`image_id`, `caption`)."""
    document = read_json(path)
    images: dict[Any, str] = {}
    for number, image in enumerate(field(document, "images", list, f"{path}"), 1):
        where = f"{path}, images, record {number}"
        identity = field(image, "id", (int, str), where)
        name = field(image, "file_name", str, where)
        if identity in images:
            raise DataError(
                f"{where} ({name}): id {identity!r} is that of {images[identity]} already: "
                "mend or remove the record"
            )
        images[identity] = name
    captions: dict[Any, list[str]] = {image: [] for image in images}
    for number, annotation in enumerate(field(document, "annotations", list, f"{path}"), 1):
        where = f"{path}, annotations, record {number}"
        image = field(annotation, "image_id", (int, str), where)
        if image not in captions:
            raise DataError(
                f"{where}: image_id {image!r} is not among the images: mend or remove the record"
            )
        captions[image].append(field(annotation, "caption", str, where))
    for image, name in images.items():
        yield SourceRecord(name, tuple(captions[image]))


def _parse_csv(path: Path, tabs: bool) -> Iterator[SourceRecord]:
    """A table with a header. Tab-separated values are taken as they are, without quoting."""
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        if tabs:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        else:
            rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            image, caption = _find_columns(path, header)
            for row in filter(None, rows):  # a blank line is no record
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {rows.line_num}: has {len(row)} fields, the header has "
                        f"{len(header)} ({row[:1]!r:.80} ...): mend or remove the line"
                    )
                yield SourceRecord(row[image], (row[caption],))
        except csv.Error as error:
            raise DataError(
                f"{path}, line {rows.line_num}: {error}: mend or remove the line"
            ) from None


def _parse_parquet(path: Path) -> Iterator[SourceRecord]:
    try:
        with reading(path), pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = [schema.names[i] for i in _find_columns(path, schema.names)]
            for name in names:
                kind = schema.field(name).type
                if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
                    raise DataError(f"{path}: column {name} holds {kind}, it must hold strings")
            for batch in file.iter_batches(columns=names):
                images, texts = (batch.column(name).to_pylist() for name in names)
                for image, text in zip(images, texts, strict=True):
                    yield SourceRecord(image or "", (text or "",))
    except pa.ArrowException as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}: fetch it again") from None


def _parse_flickr8k(path: Path) -> Iterator[SourceRecord]:
    """Lines of `name.jpg#0<tab>caption`."""
    for number, line in read_lines(path):
        image, tab, caption = line.partition("\t")
        name, sign, index = image.rpartition("#")
        if not (tab and sign and index.isdigit()):
            raise DataError(
                f"{path}, line {number}: {line!r:.80} is not of the form name#number<tab>caption: "
                "mend or remove the line"
            )
        yield SourceRecord(name, (caption,))


def _find_columns(path: Path, header: Sequence[str]) -> tuple[int, int]:
    """Find the columns of the image's name and of the caption."""
    lower = [name.strip().lower() for name in header]
    found = []
    for what, names in (("image", IMAGE_COLUMNS), ("caption", CAPTION_COLUMNS)):
        places = [lower.index(name) for name in names if name in lower]
        if not places:
            raise DataError(
                f"{path}: no {what} column among {', '.join(header) or '(none)'}: "
                f"call it one of {', '.join(names)}; images behind URLs must be fetched first"
            )
        if lower.count(lower[places[0]]) > 1:
            raise DataError(f"{path}: column {header[places[0]]} stands twice: remove one")
        found.append(places[0])
    return found[0], found[1]


def _merge_neighbours(records: Iterable[SourceRecord]) -> Iterator[SourceRecord]:
    for _, same in itertools.groupby(records, key=lambda record: record.source):
        first, *others = same
        if others:
            texts = (text for record in (first, *others) for text in record.captions)
            first = replace(first, captions=tuple(texts))
        yield first


def _keep(records: Iterable[SourceRecord], split: Path) -> Iterator[SourceRecord]:
    wanted = {line.strip() for _, line in read_lines(split)}
    return (record for record in records if record.source in wanted)


def _mismatch(records: list[SourceRecord], share: float) -> Iterator[SourceRecord]:
    """Give a share of the images the captions of another one, the same ones on every machine.

    The images are ranked by the digest of their names; each of the first takes the captions of the
    next in rank (the last of the first), which shares no caption with it.
    """
    digests = [sha256(r.source.encode(errors="surrogatepass")).digest() for r in records]
    ranked = sorted(range(len(records)), key=digests.__getitem__)
    chosen = ranked[: int(share * len(records) + 0.5)]
    lenders = chosen if len(chosen) > 1 else ranked
    borrowed = {}
    for rank, image in enumerate(chosen):
        own = set(records[image].captions)
        others = (records[lenders[(rank + i) % len(lenders)]] for i in range(1, len(lenders)))
        other = next((record for record in others if own.isdisjoint(record.captions)), None)
        if other is not None:
            borrowed[image] = replace(records[image], captions=other.captions, kind="mismatch")
    return (borrowed.get(i, record) for i, record in enumerate(records))
