"""Shards with their texts, open while they are read: those of a window, and those of the next one ahead of time."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from blip.data.dataset import Shard, kept_texts
from blip.data.images import ShardImages, decode_image
from blip.data.order import ORIGINS, Integers, PairOrder, Window
from blip.data.storage import Room
from blip.errors import DataError

AHEAD = 8  # shards that are opened at once


class UndecodableError(DataError):
    """An image of a sound shard that cannot be decoded."""


class OpenImages:
    """The images of a shard.

    Args:
        shard: The shard.
        room: Bounds the local copies of shards behind a URL.

    Attributes:
        shard: The shard.
        ids: (images,): a number for each, equal for equal keys alone.
    """

    def __init__(self, shard: Shard, room: Room | None = None) -> None:
        records = shard.read_records().select(["key", "width", "height", "offset", "size"])
        self.shard, self._contents = shard, ShardImages(shard, records, room)
        self._keys = records["key"].combine_chunks()
        self._pixels = records["width"].to_numpy().astype(np.int64) * records["height"].to_numpy()
        self.ids = _number(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, row: int) -> str:
        """Give an image's key."""
        return str(self._keys[row].as_py())

    def find(self, keys: pa.ChunkedArray) -> NDArray[np.int32]:
        """Give the row of each key.

        Raises:
            DataError: There is none of that key.
        """
        rows = pc.index_in(keys, value_set=self._keys)
        if rows.null_count:
            key = keys.filter(pc.is_null(rows))[0].as_py()
            raise DataError(
                f"{self.shard.captions}: caption of image {key}, which {self.shard.records} does "
                "not hold: the two do not belong together; ingest again"
            )
        found: NDArray[np.int32] = rows.to_numpy().astype(np.int32)
        return found

    def verify(self) -> None:
        """Have the images at hand and compared with the manifest, before they are read."""
        self._contents.verify()

    def read(self, row: int) -> Tensor:
        """Read and decode an image: (3, H, W) uint8.

        Raises:
            UndecodableError: It cannot be decoded.
            DataError: The shard is missing, or its content is not what the manifest says.
        """
        where = f"{self.shard.images}: image {self.key(row)}"
        try:
            data = self._contents.read(row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        try:
            # What the record says bounds the decoding, whatever the bytes say.
            return decode_image(data, int(self._pixels[row]))
        except DataError as error:
            raise UndecodableError(f"{where}: {error}") from None


class OpenShard(OpenImages):
    """The pairs of a shard: every text that was not dropped, with its image.

    Args:
        shard: The shard.
        number: Which of the order's shards it is.
        order: What an epoch sees of it.
        room: Bounds the local copies of shards behind a URL.

    Raises:
        DataError: A file cannot be read, or the texts are not what the manifest says.
    """

    def __init__(self, shard: Shard, number: int, order: PairOrder, room: Room) -> None:
        super().__init__(shard, room)
        captions = kept_texts(shard.read_captions())
        self.rows = self.find(captions["key"])
        self.texts = captions["text"].combine_chunks()
        names = pa.array(ORIGINS, captions["origin"].type)
        origins = pc.index_in(captions["origin"], value_set=names)
        counts = count_origins(shard)
        found = np.bincount(origins.drop_null().to_numpy(), minlength=len(ORIGINS))
        if origins.null_count or not np.array_equal(found, counts):
            raise DataError(
                f"{shard.captions}: has {found.tolist()} texts of the origins {', '.join(ORIGINS)}, "
                f"and {origins.null_count} of others, where the manifest has {counts.tolist()}: "
                "make the version again"
            )
        codes = origins.to_numpy().astype(np.int8)
        self.examples: Callable[[int], tuple[Integers, Integers]] = functools.lru_cache(maxsize=2)(
            lambda epoch: order.examples(epoch, number, codes)
        )


def count_origins(shard: Shard) -> NDArray[np.int64]:
    """Give the number of texts that were not dropped, for each of `ORIGINS`."""
    counts = shard.count_texts()
    if unknown := counts.keys() - set(ORIGINS):
        raise DataError(
            f"{shard.captions}: origin {min(unknown)!r} is none of {', '.join(ORIGINS)}"
        )
    return np.array([counts.get(origin, 0) for origin in ORIGINS], np.int64)


class Shelf:
    """The shards that are open: those of the window that is read, the one before and the next.

    Args:
        shards: All shards.
        order: In which they are read.
    """

    def __init__(self, shards: Sequence[Shard], order: PairOrder) -> None:
        self._shards, self._order, self._room = shards, order, Room()
        self._open: dict[int, Future[OpenShard]] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._last = (-1, -1)  # epoch and number of the latest window
        self._current: tuple[int, ...] = ()
        self._stop = 0

    @contextmanager
    def ahead(self, stop: int, threads: bool) -> Iterator[None]:
        """While this lasts, open shards before they are needed, up to what step `stop` needs."""
        self._last, self._stop = (-1, -1), stop
        if not threads:
            yield
            return
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="loader-shards")
        try:
            yield
        finally:
            pool, self._pool = self._pool, None
            pool.shutdown(cancel_futures=True)

    def turn_to(self, window: Window) -> None:
        """Open what a window and the next one need, and close what is past."""
        place = (window.epoch, window.number)
        with self._lock:  # the workers come at once, and some from the window before
            if place <= self._last:
                return
            following = self._order.after(window, self._stop)
            kept = {*self._current, *window.shards, *following}
            self._last, self._current = place, window.shards
            for number in self._open.keys() - kept:
                del self._open[number]
            self._room.needed = {self._shards[number].images for number in kept}
            pool = self._pool
            waiting = [n for n in (*window.shards, *following) if n not in self._open]
            if pool is not None:
                for number in waiting:
                    pool.submit(self._prepare, number)

    def get(self, number: int) -> OpenShard:
        """Give an open shard.

        Raises:
            DataError: See `OpenShard`.
        """
        with self._lock:
            future = self._open.get(number)
            mine = future is None
            if future is None:
                future = self._open[number] = Future()
        if mine:
            try:
                shard = self._shards[number]
                future.set_result(OpenShard(shard, number, self._order, self._room))
            except BaseException as error:
                with self._lock:
                    self._open.pop(number, None)  # who asks next tries again
                future.set_exception(error)
        return future.result()

    def _prepare(self, number: int) -> None:
        """Open a shard before it is needed; what is wrong with it is said when it is."""
        with suppress(DataError):
            self.get(number).verify()


def _number(keys: pa.StringArray) -> NDArray[np.int64]:
    """Give a number for each key: its first 60 bits, so that no table of all keys is needed.

    A key is the sha256 of an image. Among 100 million, some two agree with probability 0.4 %.
    """
    ascii_codes = np.array(keys.to_pylist(), dtype="S15").view(np.uint8).reshape(-1, 15)
    digits = (ascii_codes & 15) + 9 * (ascii_codes >> 6)  # hexadecimal, either case
    return digits.astype(np.int64) @ (1 << np.arange(56, -4, -4, dtype=np.int64))
