"""Unpacks a fetched archive beside itself: whole or not at all, and nothing outside of its folder."""

import shutil
import tarfile
import zipfile
from pathlib import Path

from blip.data.image_store import is_safe
from blip.errors import DataError
from blip.files import lock, sync_directory, sync_file


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive to a file or folder, which appears whole; one that is there is left alone.

    What the archive holds under the target's name, at whatever depth, becomes the target; where it
    holds nothing of that name, all of it does.

    Args:
        archive: A zip or tar, compressed or not.
        target: Where to.

    Raises:
        DataError: The archive is damaged, or leads out of its folder; or there is no room.
        BlipError: Another process unpacks it.
    """
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    with lock(target.with_name(f".{target.name}.lock"), f"unpacking {archive}"):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _extract(archive, partial)
            for path in sorted(partial.rglob("*")):
                if path.is_file():
                    sync_file(path)
            _named(partial, target.name).replace(target)
            sync_directory(target.parent)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise DataError(
                f"{archive}: cannot be unpacked: {error}: remove it and fetch it again"
            ) from None
        except OSError as error:
            raise DataError(f"{target}: cannot be written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                if not is_safe(member.filename.rstrip("/")):
                    raise DataError(
                        f"{archive}: holds {member.filename!r}, which is no plain path below it: "
                        "do not trust this archive"
                    )
            _require_space(archive, folder, sum(member.file_size for member in file.infolist()))
            file.extractall(folder)  # noqa: S202 - the names are checked above
        return
    with tarfile.open(archive) as tar:
        _require_space(archive, folder, sum(member.size for member in tar))
        tar.extractall(folder, filter="data")


def _require_space(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{archive}: needs {needed:,} bytes unpacked, {folder.parent} has {free:,}: make room"
        )


def _named(folder: Path, name: str) -> Path:
    """Find what has a name, the least deep; the folder itself where nothing has it."""
    found = sorted(folder.rglob(name), key=lambda path: (len(path.parts), path))
    return found[0] if found else folder
