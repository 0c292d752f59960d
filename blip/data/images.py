"""Images out of bytes and shards: none is decoded that is too large, or read that was changed."""

import contextlib
import io
import os
import struct
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from blip.data.dataset import Shard
from blip.data.storage import Room, fetch
from blip.errors import DataError
from blip.files import digest_file

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}

_JPEG_COLOURS = ("YCbCr", "Gray", "RGB")  # CMYK is Pillow's

# What Pillow raises on malformed files, beside its own OSErrors.
_MALFORMED = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error)


class OversizedImageError(DataError):
    """An image that holds more pixels than allowed; it was not decoded."""


@dataclass(frozen=True)
class Header:
    """What an image says of itself before it is decoded."""

    width: int  # pixels
    height: int
    extension: str


def read_header(data: bytes, max_pixels: int) -> Header:
    """Read format and size of an image without decoding it.

    Raises:
        OversizedImageError: It says that it holds more than `max_pixels` pixels.
        DataError: The bytes are no image of a known format (`FORMATS`).
    """
    with _open(data, max_pixels) as image:
        return Header(image.width, image.height, EXTENSIONS[str(image.format)])


def decode_image(data: bytes, max_pixels: int) -> "Tensor":
    """Decode a whole image as the model reads it: (3, H, W) uint8, RGB (see `decode_pixels`).

    The colours of a pixel lie together: to part them would cost as much as to resize them.

    Raises:
        OversizedImageError: It holds more than `max_pixels` pixels.
        DataError: The bytes are no image, or are cut short or damaged.
    """
    import torch  # takes seconds, and taking collections in does without

    pixels = decode_pixels(data, max_pixels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_pixels(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a whole image (of an animation the first frame): (H, W, 3) uint8, RGB.

    As in the reference, orientation tags are not followed and transparency is dropped.

    Raises:
        OversizedImageError: It holds more than `max_pixels` pixels.
        DataError: The bytes are no image, or are cut short or damaged.
    """
    # Most are JPEGs that libjpeg has nothing to say about: Pillow's pixels, in three quarters of its
    # time. Where it so much as warns, as of stray bytes, Pillow decides, and says what is wrong.
    with contextlib.suppress(ValueError):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width <= max_pixels and colours in _JPEG_COLOURS:
            return simplejpeg.decode_jpeg(data, "RGB")
    with _open(data, max_pixels) as image:
        try:
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
        except _MALFORMED as error:
            raise DataError(f"cannot be decoded: {error}") from None


class ShardImages:
    """The images of a shard, by their row in its records. Threads may share it.

    Args:
        shard: The shard.
        records: Its records, where they are at hand.
        room: Bounds the local copies of shards behind a URL.
    """

    def __init__(
        self, shard: Shard, records: pa.Table | None = None, room: Room | None = None
    ) -> None:
        self._shard, self._records, self._room = shard, records, room
        self._lock = threading.Lock()
        self._places: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def read(self, row: int) -> bytes:
        """Read the bytes of an image; the first call verifies the whole shard.

        Raises:
            DataError: The shard is missing, or its content is not what the manifest says.
        """
        try:
            return self._read(row, *self._verified())
        except FileNotFoundError:
            self._places = None  # the local copy made room for others
            return self._read(row, *self._verified())

    def verify(self) -> None:
        """Compare the tar's digest, once; of a shard behind a URL, fetch it first.

        Raises:
            DataError: As `read`.
        """
        self._verified()

    def _verified(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give offset and size of each image, after the tar's digest was compared once."""
        with self._lock:
            if self._places is None:
                shard, path = self._shard, self._shard.images
                if shard.urls:
                    fetch(shard.urls["images"], path, shard.images_digest, self._room)
                elif digest_file(path) != shard.images_digest:
                    raise DataError(
                        f"{path}: its digest is not the manifest's: it was tampered with or cut "
                        "short; make or fetch it again"
                    )
                rows = shard.read_records() if self._records is None else self._records
                self._places = rows["offset"].to_numpy(), rows["size"].to_numpy()
            return self._places

    def _read(self, row: int, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> bytes:
        path, offset, size = self._shard.images, int(offsets[row]), int(sizes[row])
        # Opened for each read: a corpus has more shards than a process may hold files.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
        if len(data) != size:
            raise DataError(f"{path}: was cut short while it was in use: make or fetch it again")
        return data


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image without decoding it."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images by a limit of its own; ours is `max_pixels`.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise DataError(f"{len(data)} bytes are no image of a known format ({known})") from None
    except Image.DecompressionBombError as error:
        raise OversizedImageError(str(error)) from None
    except _MALFORMED as error:
        raise DataError(f"cannot be opened: {error}") from None
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        raise OversizedImageError(f"{size} pixels are more than the {max_pixels} allowed")
    return image
