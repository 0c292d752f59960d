"""Tar files whose bytes follow from their members alone: no times or owners of a machine."""

import hashlib
import tarfile
from pathlib import Path
from types import TracebackType

from blip.errors import DataError

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_RECORD = 20 * _BLOCK  # to which tars are filled up with empty blocks


class TarWriter:
    """Writes a tar member by member, and its digest along the way.

    Use it as a context; the end marker is written on leaving without an error.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._sha256 = hashlib.sha256()
        self._offset = 0

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                self._write(_END)

    @property
    def digest(self) -> str:
        """Sha256 (hex) of what was written."""
        return self._sha256.hexdigest()

    def add(self, name: str, data: bytes) -> int:
        """Write one file; give the offset of its bytes within the tar."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        member.mode = 0o644
        self._write(member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
        offset = self._offset
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._offset += len(data)


def index_tar(path: Path) -> dict[str, tuple[int, int]]:
    """Find the files of an uncompressed tar: offset and size in bytes, by name.

    Links, devices and folders are left out; of two members of one name the later counts.

    Raises:
        DataError: It cannot be read, is compressed or no tar, is damaged or cut short, or holds
            more behind its end.
    """
    found: dict[str, tuple[int, int]] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                if member.isreg() and not member.issparse():  # the bytes of others are not a piece
                    found[member.name.removeprefix("./")] = member.offset_data, member.size
                # A kilobyte each, which the library would keep.
                tar.members.clear()  # type: ignore[attr-defined]
            file.seek(tar.offset)
            rest = file.read(_RECORD + len(_END))
    except tarfile.TarError as error:
        raise DataError(
            f"{path}: cannot be read as a tar ({error}): it is cut short, compressed or no tar; "
            "fetch it again or unpack it"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(rest) < len(_END) or any(rest):
        raise DataError(
            f"{path}: is damaged or cut short at byte {tar.offset}, or several tars in one: a tar "
            "ends with two empty blocks and nothing behind them; fetch it again or pack it anew"
        )
    return found
