"""Collections as users have them: annotation files of several formats, images in a folder or a tar.

Everything in them is untrusted. A malformed annotation file is an error that names file, record,
value, rule and remedy; what is wrong with single images and captions is judged in `ingest`.
"""

import contextlib
import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, TextIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from blip.config import Source
from blip.data.tar import index_tar
from blip.errors import DataError
from blip.files import read_json

IMAGE_COLUMNS = ("image", "path", "filepath", "file_path", "image_path", "filename", "file_name")
CAPTION_COLUMNS = ("caption", "text", "sentence", "alt_text")

T = TypeVar("T")

_DECODER = json.JSONDecoder()
_CHUNK = 1 << 20  # characters of JSON read at once
_MAX_RECORD = 1 << 24  # characters that one record of a JSON list may have


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
        raise DataError(
            f"{path}: no record is left after split {source.split!r} and skip {source.skip}: "
            "check that they belong to this file"
        )
    records = itertools.chain([first], records)
    if source.captions_per_image is not None:
        count = source.captions_per_image
        records = (replace(record, captions=record.captions[:count]) for record in records)
    return _mismatch(list(records), source.mismatch) if source.mismatch else records


class ImageStore:
    """The images of a collection by name: the files of a folder, or the members of a tar.

    Raises:
        DataError: It is missing, unreadable, or a tar that is cut short.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.is_dir():
            self._root = path.resolve()
            self._members: dict[str, tuple[int, int]] | None = None
        else:
            self._members = index_tar(path)
            self._file = path.open("rb")

    def __enter__(self) -> "ImageStore":
        return self

    def __exit__(self, *_: object) -> None:
        if self._members is not None:
            self._file.close()

    def read(self, name: str) -> bytes | None:
        """Read an image; None where there is no regular file of that name.

        Raises:
            ValueError: The name is not safe, or leads out of the folder through a link.
            DataError: The file is there but cannot be read.
        """
        if not is_safe(name):
            raise ValueError(f"{name!r} is not a plain relative path")
        try:
            if self._members is None:
                return self._read_file(name)
            return self._read_member(name)
        except OSError as error:
            raise DataError(f"{self._path / name}: cannot be read: {error.strerror}") from None

    def _read_file(self, name: str) -> bytes | None:
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root):
            raise ValueError(f"{name!r} is a link out of the folder")
        return path.read_bytes() if path.is_file() else None

    def _read_member(self, name: str) -> bytes | None:
        assert self._members is not None
        place = self._members.get(name.removeprefix("./"))
        if place is None:
            return None
        self._file.seek(place[0])
        return self._file.read(place[1])


def is_safe(name: str) -> bool:
    """Tell whether a name may be looked up: relative, downwards, printable, of a sane length."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and name.isprintable() and "\\" not in name and len(name) < 1024


def _parse_folder(form: str, folder: Path) -> Iterator[SourceRecord]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"{folder}: cannot be read: there is no file in the folder")
    for path in files:
        collection = Path(path.relative_to(folder).parts[0]).stem
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
    for number, item in enumerate(json_items(path), 1):
        where = f"{path}, record {number}"
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
        images[field(image, "id", (int, str), where)] = field(image, "file_name", str, where)
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
    with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        if tabs:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        else:
            rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            image, caption = _find_columns(path, header)
            for row in rows:
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
    with _reading(path), pq.ParquetFile(path) as file:
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


def json_items(path: Path, member: str | None = None) -> Iterator[Any]:
    """Give the items of a JSON list one by one, without holding the file.

    Args:
        path: The file.
        member: The file holds an object, and the list is this member of it; those before it are
            held one at a time.

    Raises:
        DataError: The file cannot be read, or holds no such list; the record is named.
    """
    with _reading(path), path.open(encoding="utf-8-sig") as file:
        text = _JsonText(path, file)
        if member is not None:
            _enter_member(text, member)
        separator = "["
        for number in itertools.count(1):
            item = text.take(partial(_next_item, separator=separator), f"record {number}")
            if not item:
                return
            yield item[0]
            separator = ","


def is_json_list(path: Path) -> bool:
    """Tell a list in JSON from an object, or from lines of them.

    Raises:
        DataError: The file cannot be read.
    """
    with _reading(path), path.open(encoding="utf-8-sig") as file:
        return file.read(_CHUNK).lstrip().startswith("[")


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Give what stands on each line of a file, in JSON, and how errors name the line.

    Raises:
        DataError: The file cannot be read, or a line is not JSON; it is named.
    """
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: is not JSON ({error}), it begins with {line[:60]!r}: mend the file; if "
                "it is cut short, fetch it again"
            ) from None


class _JsonText:
    """A file of JSON that is read as far as the next value needs."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self._file = path, file
        self._text, self._at = file.read(_CHUNK), 0

    def take(self, parse: Callable[[str, int], tuple[T, int]], what: str) -> T:
        """Give what `parse` finds at the place in the text, and go on behind it."""
        while True:
            try:
                found, self._at = parse(self._text, self._at)
                return found
            except (ValueError, RecursionError) as error:
                rest = self._text[self._at :]
                more = self._file.read(_CHUNK) if len(rest) < _MAX_RECORD else ""
                if not more:
                    raise DataError(
                        f"{self.path}, {what}: is not JSON ({error}), it begins with "
                        f"{rest[:60]!r}: mend the file; if it is cut short, fetch it again"
                    ) from None
                self._text, self._at = rest + more, 0


def _enter_member(text: _JsonText, member: str) -> None:
    """Go to the value of a member of the object that begins here."""
    separator = "{"
    while (name := text.take(partial(_next_name, separator=separator), member)) != member:
        if name is None:
            raise DataError(f"{text.path}: has no {member!r}: it is a file of something else")
        text.take(_next_value, name)
        separator = ","


def _next_name(text: str, at: int, separator: str) -> tuple[str | None, int]:
    """Give the name of the member behind a separator, and where its value begins; None at the end."""
    if separator == ",":
        at = _skip_space(text, at)
        if text.startswith("}", at):
            return None, at
    at = _skip(text, at, separator)
    if separator == "{" and text.startswith("}", at):
        return None, at
    name, at = _next_value(text, at)
    return str(name), _skip(text, at, ":")


def _next_item(text: str, at: int, separator: str) -> tuple[list[Any], int]:
    """Give the list item behind a separator, and where it ends; none at the end of the list."""
    if separator == ",":
        at = _skip_space(text, at)
        if text.startswith("]", at):
            return [], at
    at = _skip(text, at, separator)
    if separator == "[" and text.startswith("]", at):
        return [], at
    item, at = _next_value(text, at)
    return [item], at


def _next_value(text: str, at: int) -> tuple[Any, int]:
    """Give a value, and where it ends: before the end of the text, where a number might go on."""
    value, at = _DECODER.raw_decode(text, _skip_space(text, at))
    if at == len(text):
        raise ValueError("it is cut short")
    return value, at


def _skip(text: str, at: int, mark: str) -> int:
    """Give the place behind a mark and the space around it."""
    at = _skip_space(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"expected {mark!r}")
    return _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def field(item: Any, name: str, kind: type[T] | tuple[type[T], ...], where: str) -> T:
    """Give the field of a record, which must be of a kind; `where` names the record in the error.

    Raises:
        DataError: The record is no object, or lacks the field, or it is of another kind.
    """
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = getattr(kind, "__name__", "int or str")
        raise DataError(
            f"{where}: {name} is {value!r:.80}, it must be {wanted}: mend or remove the record "
            f"({item!r:.80})"
        )
    return value


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
        found.append(places[0])
    return found[0], found[1]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines that are not blank, with their numbers.

    Raises:
        DataError: The file cannot be read.
    """
    with _reading(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip("\n")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say which file could not be read."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error}): convert it") from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}: fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


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
