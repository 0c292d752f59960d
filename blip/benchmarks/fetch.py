"""Fetches files of many gigabytes over HTTP: goes on where it stopped, and keeps only what is right.

A file grows beside its place as `.NAME.part`, with what the server said of it in `.NAME.part.json`,
and takes its name when it is whole and has the size and checksum that are known. A part is continued
only where the server can tell that it is still of the same file (ETag or date), or a checksum will.
"""

import contextlib
import hashlib
import http.client
import json
import logging
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blip.benchmarks.catalogue import BenchmarkFile
from blip.errors import DataError
from blip.files import digest_file, lock, read_json, sync_directory, sync_file, write_json
from blip.progress import Progress

log = logging.getLogger(__name__)

RECORD = "fetched.json"
"""Beside the files: where each came from, and the size and sha256 it had when it was first here."""

ATTEMPTS = 5  # in a row that bring nothing
PAUSE = 0.5  # seconds before the second attempt; each later pause is twice as long
TIMEOUT = 30.0  # seconds without a byte

_CHUNK = 2**20
_LOCKS = ".locks"


@dataclass(frozen=True)
class Record:
    """What is known of a file that was fetched, or found in its place."""

    url: str | None
    size: int
    sha256: str


class _AgainError(Exception):
    """The server or the way to it failed; to ask again may help."""


def fetch(place: str, file: BenchmarkFile, folder: Path) -> Record:
    """Bring a file to its place, or check the one that is there; record what it is.

    Args:
        place: Relative to the folder.
        file: What the catalogue says of it; it has a URL.
        folder: Of all benchmarks' files.

    Raises:
        DataError: The server refuses, is gone or gives something else; the disk is full; or the
            file differs from the catalogue or from what was recorded.
        BlipError: Another process fetches it.
    """
    assert file.url is not None
    target = folder / place
    for needed in (folder / _LOCKS, target.parent):
        try:
            needed.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{needed}: cannot be made: {error.strerror}") from None
    with lock(folder / _LOCKS / place.replace("/", "_"), f"fetching {target}"):
        known = read_records(folder).get(place)
        if target.is_file():
            return _keep(place, file, folder, target, known)
        part = target.with_name(f".{target.name}.part")
        _download(file, part)
        try:
            found = _check(file, part, known, target)
        except DataError:
            _discard(part)
            raise
        sync_file(part)
        part.replace(target)
        _discard(part)
        sync_directory(target.parent)
        _write_record(folder, place, found)
        return found


def read_records(folder: Path) -> dict[str, Record]:
    """Read what is recorded of the files of a folder, by place.

    Raises:
        DataError: The record is malformed.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        return {place: Record(**entry) for place, entry in read_json(path).items()}
    except (TypeError, AttributeError):
        raise DataError(
            f"{path}: is not what `blip benchmark fetch` writes: remove it, and fetch again"
        ) from None


def _keep(
    place: str, file: BenchmarkFile, folder: Path, target: Path, known: Record | None
) -> Record:
    """Check a file that is in its place."""
    found = _check(file, target, known, target)
    if known is None:
        _write_record(folder, place, found)
    log.info("%s is here already, and is what it should be", target)
    return found


def _check(file: BenchmarkFile, path: Path, known: Record | None, target: Path) -> Record:
    """Hold a file, in its place or about to take it, against the catalogue and the record."""
    size, sha256 = path.stat().st_size, digest_file(path)
    md5 = _md5(path) if file.md5 else None
    rules = [
        ("size", size, file.size, "the catalogue gives"),
        ("sha256", sha256, file.sha256, "the catalogue gives"),
        ("md5", md5, file.md5, "the catalogue gives"),
        ("sha256", sha256, known and known.sha256, f"{RECORD} has from the first time"),
    ]
    remedy = "remove it and fetch again" if path == target else "it is not kept; fetch again"
    for what, found, wanted, who in rules:
        if wanted is not None and found != wanted:
            raise DataError(
                f"{target}: {what} is {found}, {who} {wanted}: this is another file than the one "
                f"that is meant ({file.url}): {remedy}; if the source has changed it, its numbers "
                "are no longer comparable"
            )
    return Record(file.url, size, sha256)


def _download(file: BenchmarkFile, part: Path) -> None:
    """Bring the whole of a file into its part, in as many attempts as bring something."""
    failures = 0
    while True:
        before = _size(part)
        try:
            _continue(file, part)
            return
        except _AgainError as error:
            failures = 0 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise DataError(
                    f"{file.url}: failed {ATTEMPTS} times: {error}: {_size(part):,} bytes are kept; "
                    "fetch again, and it goes on from there"
                ) from None
            pause = PAUSE * 2 ** max(failures - 1, 0)
            log.warning("%s: %s; trying again in %.1f s", file.url, error, pause)
            time.sleep(pause)


def _continue(file: BenchmarkFile, part: Path) -> None:
    """Ask once for what the part lacks, and append it."""
    start, request = _request(file, part)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 - http(s) by rule
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                start = 0  # the server gives the file from its beginning, or it is another file
            total = _total(answer, start)
            _refuse_page(file, answer)
            _require_space(part, total, start)
            _append(answer, part, start, total)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return  # it was whole already
            _discard(part)
            raise _AgainError("the file is another one now") from None
        raise _refusal(file, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise _AgainError(_reason(error)) from None


def _request(file: BenchmarkFile, part: Path) -> tuple[int, urllib.request.Request]:
    """Give the place to go on from, and the request for the rest."""
    assert file.url is not None
    request = urllib.request.Request(file.url, headers={"User-Agent": "blip-platform"})  # noqa: S310
    start, said = _size(part), _read_said(part)
    validator = said.get("etag") or said.get("modified")
    if not start or not (validator or file.sha256 or file.md5):
        return 0, request
    request.add_header("Range", f"bytes={start}-")
    if validator:
        request.add_header("If-Range", validator)
    return start, request


def _total(answer: Any, start: int) -> int | None:
    """Give the size of the whole file, if the server tells."""
    if start:
        span = answer.headers.get("Content-Range", "")
        if not span.startswith(f"bytes {start}-"):
            raise _AgainError(f"the server gave {span or 'no range'} for bytes {start}-")
        total = span.rpartition("/")[2]
        return int(total) if total.isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _append(answer: Any, part: Path, start: int, total: int | None) -> None:
    """Write what the server sends behind the start of the part."""
    if not start:
        etag = answer.headers.get("ETag", "")
        said = {
            "etag": None if etag.startswith("W/") else etag or None,  # a weak one proves no bytes
            "modified": answer.headers.get("Last-Modified"),
        }
        write_json(_said(part), said)
    progress = Progress(f"fetching {part.name[1:-5]}", total, "bytes", start) if total else None
    with _writing(part), part.open("r+b" if start else "wb") as out:
        out.seek(start)
        out.truncate()
        while chunk := _read(answer):
            out.write(chunk)
            if progress:
                progress.advance(len(chunk))
    if total is not None and _size(part) != total:
        raise _AgainError(f"the server broke off at {_size(part):,} of {total:,} bytes")


def _read(answer: Any) -> bytes:
    """Read what has arrived."""
    try:
        return bytes(answer.read1(_CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _AgainError(_reason(error)) from None


@contextlib.contextmanager
def _writing(part: Path) -> Any:
    """Tell errors of the disk from those of the network."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{part}: cannot be written: {error.strerror or error}: {_size(part):,} bytes are kept; "
            "make room and fetch again, and it goes on from there"
        ) from None


def _require_space(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise DataError(
            f"{part.parent}: has room for {free:,} bytes, the file needs {total - start:,} more: "
            "make room, or name another folder"
        )


def _refuse_page(file: BenchmarkFile, answer: Any) -> None:
    """Refuse the page that a site shows instead of a file that is gone, moved or needs a login."""
    if answer.headers.get_content_type() == "text/html":
        raise DataError(
            f"{file.url}: the server sent a page instead of the file: open it in a browser to see "
            f"what it asks for{_advice(file)}"
        )


def _refusal(file: BenchmarkFile, error: urllib.error.HTTPError) -> Exception:
    """Tell what an answer of the server that is no file means."""
    match error.code:
        case 401 | 403:
            return DataError(f"{file.url}: access is refused ({error.code}){_advice(file)}")
        case 404 | 410:
            return DataError(f"{file.url}: is not there ({error.code}){_advice(file)}")
        case 408 | 425 | 429 | 500 | 502 | 503 | 504:
            return _AgainError(f"the server answers {error.code} {error.reason}")
    return DataError(f"{file.url}: the server answers {error.code} {error.reason}")


def _advice(file: BenchmarkFile) -> str:
    return f": {file.obtain}" if file.obtain else ": look whether its site gives another address"


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(cause).split()) or type(error).__name__


def _write_record(folder: Path, place: str, record: Record) -> None:
    with lock(folder / _LOCKS / RECORD, f"writing {folder / RECORD}", wait=True):
        records = {**read_records(folder), place: record}
        write_json(folder / RECORD, {name: asdict(entry) for name, entry in records.items()})


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _said(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_said(part: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(_said(part).read_bytes()))
    return {}


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _said(part).unlink(missing_ok=True)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
