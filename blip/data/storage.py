"""Local copies of the files of remote dataset versions: named by digest, whole or absent, bounded in size."""

import contextlib
import os
import threading
from collections.abc import Collection
from pathlib import Path

from blip import remote
from blip.errors import ConfigError, DataError
from blip.files import digest_file, lock

FOLDER, LIMIT = "BLIP_SHARD_CACHE", "BLIP_SHARD_CACHE_GB"
"""Environment variables: where copies are kept, by default `runs/shards`, which the processes of a node
share; and how many (10^9 bytes), by default 200."""


def place(digest: str, suffix: str) -> Path:
    """Give the place of the copy of a file."""
    return Path(os.environ.get(FOLDER, "runs/shards")) / f"{digest}{suffix}"


def fetch(url: str, path: Path, digest: str, room: "Room | None" = None) -> None:
    """Make sure that a copy is there and is what the digest says; one process at a time fetches it.

    Args:
        url: Where the file is.
        path: Where its copy belongs.
        digest: The sha256 of its bytes.
        room: Bounds what is kept.

    Raises:
        DataError: The file is missing, cannot be read, or is not what the digest says.
    """
    if _is_whole(path, digest):
        return
    partial = path.with_suffix(".partial")

    def check() -> None:
        if digest_file(partial) != digest:
            raise ValueError(
                "its digest is not the manifest's: it was tampered with or cut short; "
                "make it or upload it again"
            )

    with lock(path.parent / "locks" / digest, f"the download of {url}", wait=True):
        if _is_whole(path, digest):  # another process was faster
            return
        if room is not None:
            room.make(remote.size_of(url))
        try:
            remote.download(url, partial, check)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _is_whole(path: Path, digest: str) -> bool:
    """Tell whether the copy is there; one that was damaged on disk is removed."""
    if not path.exists():
        return False
    with contextlib.suppress(DataError, OSError):  # it may go at this moment
        if digest_file(path) == digest:
            os.utime(path)  # the last to be removed
            return True
        path.unlink(missing_ok=True)
    return False


class Room:
    """The disk space of the copies.

    Attributes:
        needed: Paths that are not removed.

    Raises:
        ConfigError: BLIP_SHARD_CACHE_GB is no number.
    """

    def __init__(self) -> None:
        limit = os.environ.get(LIMIT, "200")
        try:
            self._limit = int(float(limit) * 1e9)
        except ValueError:
            raise ConfigError(f"{LIMIT}={limit}: must be a number of 10^9 bytes") from None
        self._lock = threading.Lock()
        self.needed: Collection[Path] = frozenset()

    def make(self, size: int) -> None:
        """Remove what was not needed for longest until `size` bytes more fit in.

        Raises:
            DataError: They do not.
        """
        folder = place("", "")
        with self._lock:
            found = []
            for path in [*folder.glob("*.tar"), *folder.glob("*.parquet")]:
                with contextlib.suppress(FileNotFoundError):  # another process makes room too
                    status = path.stat()
                    found.append((status.st_mtime, path, status.st_size))
            used = sum(length for *_, length in found)
            for _, path, length in sorted(found):
                if used + size <= self._limit:
                    break
                if path not in self.needed:
                    path.unlink(missing_ok=True)
                    used -= length
            if used + size > self._limit:
                raise DataError(
                    f"{folder}: {used + size} bytes of image shards are needed at once, more than "
                    f"{LIMIT} {self._limit / 1e9:g}: raise it, or lower pairs.shuffle_shards"
                )
