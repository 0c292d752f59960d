"""The images of a collection by the names that its annotations give them, none of which is trusted."""

import errno
import os
from pathlib import Path, PurePosixPath

from blip.data.tar import index_tar
from blip.errors import DataError


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
            if error.errno == errno.ENAMETOOLONG:  # no file can have it
                return None
            raise DataError(f"{self._path / name}: cannot be read: {error.strerror}") from None

    def _read_file(self, name: str) -> bytes | None:
        # Unlike `resolve`, it bears links in a circle: they lead to no file.
        path = Path(os.path.realpath(self._root / name))
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
