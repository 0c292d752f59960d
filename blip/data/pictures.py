"""Images that a person names at a shell: files, folders, and what comes on standard input."""

import collections
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

from torch import Tensor

from blip.data.images import decode_image
from blip.data.transforms import evaluation_resize
from blip.errors import ConfigError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
STANDARD_INPUT = "-"
MAX_PIXELS = 50_000_000
THREADS = 4  # that decode, while the model works on the batch before

_MAGIC_BYTES = 12


class Source(NamedTuple):
    """Where an image is: a file, or its bytes where they are read already."""

    name: str
    data: bytes | None = None


class Picture(NamedTuple):
    """An image, resized for a model.

    Attributes:
        name: As it may be printed.
        digest: The sha256 (hex) of its bytes.
        pixels: (3, S, S) uint8, RGB.
    """

    name: str
    digest: str
    pixels: Tensor


def list_pictures(names: Sequence[str], standard_input: IO[bytes]) -> list[Source]:
    """List the images of files, of folders (all below them, sorted), and of `-`, in this order.

    Nothing but standard input is opened: it is the bytes of one image, or names, one a line.

    Raises:
        ConfigError: `-` is there twice.
    """
    if names.count(STANDARD_INPUT) > 1:
        raise ConfigError("- is there twice, but standard input can be read once only")
    found: list[Source] = []
    for name in names:
        if name != STANDARD_INPUT:
            found += _below(name)
            continue
        data = standard_input.read(_MAGIC_BYTES)
        data, is_image = data + standard_input.read(), _is_image(data)
        if is_image:
            found.append(Source(STANDARD_INPUT, data))
        else:
            lines = (line.strip(b"\r") for line in data.split(b"\n"))
            found += [source for line in lines if line for source in _below(os.fsdecode(line))]
    return found


def picture_batches(
    sources: Iterable[Source], size: int, batch_size: int, refuse: Callable[[str], None]
) -> Iterator[list[Picture]]:
    """Give the images in order, in batches; only some batches are held at a time.

    Args:
        sources: Where they are.
        size: Side they are resized to.
        batch_size: Images of a batch; the last may have fewer.
        refuse: Told of each image that cannot be read, with its name; the others go on.
    """
    batch: list[Picture] = []
    remaining = iter(sources)
    with ThreadPoolExecutor(THREADS) as pool:
        begun = collections.deque[Future[Picture]]()
        try:
            while True:
                room = 2 * batch_size - len(begun)
                for source in itertools.islice(remaining, room):
                    begun.append(pool.submit(read_picture, source, size))
                if not begun:
                    break
                try:
                    batch.append(begun.popleft().result())
                except DataError as error:
                    refuse(str(error))
                if len(batch) == batch_size:
                    yield batch
                    batch = []
        finally:
            pool.shutdown(cancel_futures=True)
    if batch:
        yield batch


def read_picture(source: Source, size: int) -> Picture:
    """Read an image and bring it to (3, S, S).

    Raises:
        DataError: It cannot be read or decoded; it is named.
    """
    # A file's name need not be text.
    name = os.fsencode(source.name).decode(errors="replace")
    path = Path(source.name)
    if source.data is None and path.is_dir():
        raise DataError(f"{name}: there is no image in this folder ({', '.join(SUFFIXES)})")
    try:
        data = path.read_bytes() if source.data is None else source.data
        pixels = evaluation_resize(decode_image(data, MAX_PIXELS), size)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    return Picture(name, hashlib.sha256(data).hexdigest(), pixels)


def _below(name: str) -> list[Source]:
    """Give a file, or the images of a folder; a folder without any stands for itself."""
    if not Path(name).is_dir():
        return [Source(name)]
    files = (path for path in Path(name).rglob("*") if path.suffix.lower() in SUFFIXES)
    return [Source(str(path)) for path in sorted(files) if path.is_file()] or [Source(name)]


def _is_image(magic: bytes) -> bool:
    """Recognise the first bytes of an image; those of BMP might begin a name, but for its zeros."""
    return (
        magic.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"))
        or (magic.startswith(b"RIFF") and magic[8:12] == b"WEBP")
        or (magic.startswith(b"BM") and magic[6:10] == bytes(4))
    )
