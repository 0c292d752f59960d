"""Files behind a URL of any store that fsspec knows (`s3://`, `file://`, `memory://`, ...).

Endpoint and credentials of S3 come from the usual variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...
"""

import logging
import os
import posixpath
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from blip.errors import DataError

log = logging.getLogger(__name__)

ATTEMPTS = 5
PAUSE = 0.5  # seconds before the second attempt; each later pause is twice as long

T = TypeVar("T")


class MissingError(DataError):
    """There is no file behind a URL."""


def is_url(place: str | Path) -> bool:
    """Tell whether a place is a URL rather than a path."""
    return isinstance(place, str) and "://" in place


def parse_place(text: str) -> str | Path:
    """Give a URL as it is, all else as a path."""
    return text.rstrip("/") if is_url(text) else Path(text)


def join(url: str, relative: str) -> str:
    """Give the URL of what lies at a relative path, which may lead upwards."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(rest, relative))}"


def read_url(url: str) -> bytes:
    """Read a whole file.

    Raises:
        DataError: See `attempt`.
    """
    return attempt(url, lambda filesystem, path: bytes(filesystem.cat_file(path)))


def size_of(url: str) -> int:
    """Give the size of a file in bytes.

    Raises:
        DataError: See `attempt`.
    """
    return attempt(url, lambda filesystem, path: int(filesystem.info(path)["size"]))


def download(url: str, target: Path, check: Callable[[], None]) -> None:
    """Fetch a file to a place on disk, again as long as `check` raises.

    Raises:
        DataError: See `attempt`.
    """

    def fetch(filesystem: Any, path: str) -> None:
        filesystem.get_file(path, os.fspath(target))
        check()

    attempt(url, fetch)


def attempt(url: str, call: Callable[[Any, str], T]) -> T:
    """Do something with the file behind a URL, again after a pause where it fails.

    Args:
        url: Named in errors.
        call: Given the file system of fsspec and the path within it.

    Raises:
        MissingError: There is no such file.
        DataError: It is refused, or the last attempt failed as well.
    """
    import fsspec  # takes a tenth of a second, and is needed for URLs alone

    for number in range(1, ATTEMPTS + 1):
        try:
            return call(*fsspec.core.url_to_fs(url))
        except FileNotFoundError:
            raise MissingError(f"{url}: is not there: upload it, or mend the address") from None
        except PermissionError as error:
            raise DataError(f"{url}: access is refused ({error}): check the credentials") from None
        except ImportError as error:
            raise DataError(f"{url}: {error}") from None
        except Exception as error:  # every store has exceptions of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            if number == ATTEMPTS:
                raise DataError(f"{url}: failed {ATTEMPTS} times: {reason}") from None
            pause = PAUSE * 2 ** (number - 1)
            log.warning("%s: %s; trying again in %.1f s", url, reason, pause)
            time.sleep(pause)
    raise AssertionError
