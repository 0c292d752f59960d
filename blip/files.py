"""Files that are either whole or absent: atomic writes, content digests, locks that die with their holder."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from blip.errors import BlipError, DataError

log = logging.getLogger(__name__)


def digest_json(value: Any) -> str:
    """Give the sha256 (hex) of a JSON-able value in its canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Names of files need not be text; those bytes of theirs are taken as they are.
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def digest_file(path: Path) -> str:
    """Give the sha256 (hex) of a file's bytes.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def digest_directory(path: Path, without: frozenset[str] = frozenset()) -> str:
    """Give the sha256 (hex) of a folder: of the relative names and the digests of its files.

    Args:
        path: The folder.
        without: Top-level names to leave out.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = {file.relative_to(path).as_posix(): file for file in files}
    return digest_json({n: digest_file(f) for n, f in names.items() if n not in without})


def digest_path(path: Path) -> str:
    """Give the digest of a file or a folder."""
    return digest_directory(path) if path.is_dir() else digest_file(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in order, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: The file is missing or malformed.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=unique_members)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from None


def unique_members(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its members; of two with one name the first would be lost unseen.

    Raises:
        ValueError: A name stands twice.
    """
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r:.80} stands twice in an object")
    return found


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only when it is whole and on disk.

    Raises:
        DataError: The disk is full or the place cannot be written.
    """
    descriptor = -1
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Fill a folder that takes its name, replacing an older one, only when it is whole and on disk.

    Folders that a killed writer left beside it are removed first. The caller holds the stage's lock.

    Raises:
        DataError: The disk is full or the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        _sync_tree(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Fill a folder that takes its name when it is whole and on disk, unless another took it first.

    For what several processes may make at once: whoever makes it, the content is the same.

    Raises:
        DataError: The disk is full or the place cannot be written.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        partial.chmod(0o777 & ~_umask())
        yield partial
        _sync_tree(partial)
        try:
            partial.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        sync_directory(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def lock(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock that the kernel frees when the holder ends, however it ends.

    Args:
        path: The lock's file.
        what: The work, for messages.
        wait: Wait for another holder instead of refusing.

    Raises:
        BlipError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            busy = f"{what} is already running (process {file.read().strip() or 'unknown'})"
            if not wait:
                raise BlipError(f"{busy}: wait for it, or stop it first") from None
            log.info("%s; waiting for it", busy)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder, which is made if need be, against other processes that hold it so.

    Args:
        folder: The folder; nothing is written into it.
        what: Who holds it, for messages.

    Raises:
        BlipError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlipError(
                f"{folder}: {what} is at work here already: wait for it, or stop it first"
            ) from None
        yield
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Bring a file's content down to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Bring the names in a folder down to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Bring all files and names below a folder down to the disk."""
    inside = sorted(folder.rglob("*"))
    for path in inside:
        if path.is_file():
            sync_file(path)
    for path in [folder, *(path for path in inside if path.is_dir())]:
        sync_directory(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
