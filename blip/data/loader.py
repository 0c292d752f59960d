"""Batches of pairs for training and of images for evaluation.

The batch of a step is a function of the seed and the step (`blip.data.order`): a run that was killed goes on at any
step at once, and neither the number of workers nor that of processes changes what a step sees.
"""

import collections
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from blip import distributed
from blip.batch import Batch
from blip.config import PairTraining
from blip.data.dataset import Dataset
from blip.data.order import ORIGINS, PairOrder, Window
from blip.data.shards import OpenImages, OpenShard, Shelf, UndecodableError, count_origins
from blip.data.text import Tokenizer, clean_caption
from blip.data.transforms import TrainTransform, evaluation_resize, normalise
from blip.errors import DataError

PREFETCH = 2  # batches ahead of each worker
COUNTING = 8  # caption tables read at once, where the manifest does not count
CACHE_BYTES = 256 * 2**20  # of decoded images that are kept for the next epoch

T = TypeVar("T")

log = logging.getLogger(__name__)


class _Pair(NamedTuple):
    shard: OpenShard
    text: int  # among those of the shard
    row: int  # of the image
    number: int  # of the example; a text that is seen again has another

    @property
    def image(self) -> tuple[str, int]:
        """What names its image: the digest of the tar, and the row."""
        return self.shard.shard.images_digest, self.row


class PairLoader:
    """The pairs of several dataset versions: every text that was not dropped, with its image.

    Args:
        datasets: Dataset versions, in this order.
        tokenizer: Makes the tokens.
        training: Batch, image size, text lengths, augmentation, number of worker threads, and how
            the pairs are read.
        seed: Decides order and augmentation.
        prompt: Put before every cleaned caption.
        device: Where the batches go.

    Raises:
        DataError: A table cannot be read, or there are fewer pairs than a batch.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        tokenizer: Tokenizer,
        training: PairTraining,
        seed: int,
        prompt: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        self._tokenizer, self._training = tokenizer, training
        self._seed, self._prompt, self._device = seed, prompt, torch.device(device)
        self._transform = TrainTransform(training.augmentation, training.image_size)
        shards = [shard for dataset in datasets for shard in dataset.shards]
        parts = [s.collection or d.name for d in datasets for s in d.shards]
        with ThreadPoolExecutor(COUNTING) as pool:
            counts = np.array(list(pool.map(count_origins, shards))).reshape(-1, len(ORIGINS))
        names = ", ".join(str(dataset.path) for dataset in datasets)
        pairs, batch_size = training.pairs, training.batch_size
        self._order = PairOrder(counts, parts, pairs, batch_size, seed, names)
        # Pairs are numbered through all shards; the augmentation of each hangs on its number.
        self._first = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
        self._shelf = Shelf(shards, self._order)
        self._decoded = _Decoded(CACHE_BYTES if len(shards) <= pairs.shuffle_shards else 0)
        self._bad = _BadRecords(pairs.max_bad_records)

    @property
    def num_examples(self) -> int:
        """Number of pairs of an epoch, before the rest is cut off."""
        return self._order.num_examples

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches of an epoch."""
        return self._order.steps_per_epoch

    @property
    def bad_records(self) -> int:
        """Number of images that this process could not decode and passed over."""
        return len(self._bad)

    def keys_of(self, step: int) -> list[str]:
        """Give the keys of the images that this process saw at a step, one a pair."""
        keys = []
        for window, index in self._order.of(step):
            pairs = (self._find(window, index + later) for later in range(len(window)))
            pair = next(pair for pair in pairs if pair.image not in self._bad)
            keys.append(pair.shard.key(pair.row))
        return keys

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Give the batches of the steps from `start` to `stop`, prepared ahead by the workers.

        Raises:
            DataError: A shard is missing or was changed, or more images than allowed cannot be
                decoded; shard and key are named.
        """
        steps, workers = range(start, stop), self._training.num_workers
        with self._shelf.ahead(stop, threads=workers > 0):
            for images, token_ids, mask, image_ids in ahead(self._load, steps, workers):
                on_device = images.to(self._device, non_blocking=True)
                batch = Batch(normalise(on_device), token_ids, mask, image_ids)
                yield batch.to(self._device)

    def _load(self, step: int) -> tuple[Tensor, ...]:
        """Prepare this process's part of a global batch; its images are still uint8."""
        places = self._order.of(step)
        for window in dict.fromkeys(window for window, _ in places):
            self._shelf.turn_to(window)
        images, texts, image_ids = [], [], []
        for window, index in places:
            pair, image = self._read(window, index)
            # The pair's own generator: its augmentation depends on no other pair.
            rng = np.random.default_rng((self._seed, window.epoch, pair.number))
            images.append(self._transform(image, rng))
            texts.append(self._prompt + self._clean(pair.shard.texts[pair.text].as_py()))
            image_ids.append(pair.shard.ids[pair.row])
        token_ids, mask = self._tokenizer.encode(texts, self._training.max_tokens)
        tensors = (torch.stack(images), token_ids, mask, torch.tensor(image_ids))
        return tuple(t.pin_memory() for t in tensors) if self._device.type == "cuda" else tensors

    def _read(self, window: Window, index: int) -> tuple[_Pair, Tensor]:
        """Give a pair and its image; in place of one that cannot be decoded, the next of the window that can."""
        for later in range(len(window)):
            pair = self._find(window, index + later)
            if pair.image in self._bad:
                continue
            try:
                return pair, self._decoded.read(pair)
            except UndecodableError as error:
                self._bad.add(pair.image, error)
        raise DataError(f"none of the {len(window)} images of a window can be decoded")

    def _find(self, window: Window, index: int) -> _Pair:
        number, example = window.place(index)
        shard = self._shelf.get(number)
        texts, seen = shard.examples(window.epoch)
        text = int(texts[example])
        pair = int(self._first[number]) + text + int(seen[example]) * int(self._first[-1])
        return _Pair(shard, text, int(shard.rows[text]), pair)

    def _clean(self, text: str) -> str:
        return clean_caption(text, self._training.max_words)


class _Decoded:
    """Decoded images that are kept for the next epoch.

    What was read first stays: where an epoch does not fit, to drop the oldest would drop each image
    just before its turn.

    Args:
        room: How many bytes to keep.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._images: dict[tuple[str, int], Tensor] = {}

    def read(self, pair: _Pair) -> Tensor:
        """Give the image of a pair: (3, H, W) uint8, not to be written to."""
        if (kept := self._images.get(pair.image)) is not None:
            return kept
        image = pair.shard.read(pair.row)
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._images[pair.image] = image
        return image


class _BadRecords:
    """The images that cannot be decoded, up to a limit.

    Args:
        most: The limit.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._images: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, image: tuple[str, int]) -> bool:
        return image in self._images

    def add(self, image: tuple[str, int], error: UndecodableError) -> None:
        """Count an image.

        Raises:
            DataError: There are more than the limit.
        """
        with self._lock:  # the workers meet the same image
            if image in self._images:
                return
            if len(self) == self._most:
                passed = f"after {self._most} that were passed over" if self._most else ""
                raise DataError(
                    f"{error} {passed}: take the collection in again, which leaves it out, or "
                    "raise pairs.max_bad_records"
                )
            self._images.add(image)
            log.warning("%s: passed over (%d of %d)", error, len(self), self._most)


def image_batches(
    dataset: Dataset, size: int, batch_size: int
) -> Iterator[tuple[list[str], Tensor]]:
    """Give keys and images (B, 3, S, S) float32 of a dataset version, each image once, in order.

    Raises:
        DataError: A shard was changed or an image cannot be decoded; shard and key are named.
    """
    shards = {shard.images_digest: shard for shard in dataset.shards}
    opened = map(OpenImages, shards.values())
    places = ((images, row) for images in opened for row in range(len(images)))
    while batch := list(itertools.islice(places, batch_size)):
        keys = [images.key(row) for images, row in batch]
        pixels = [evaluation_resize(images.read(row), size) for images, row in batch]
        yield keys, normalise(torch.stack(pixels))


def ahead(load: Callable[[int], T], steps: range, num_workers: int) -> Iterator[T]:
    """Give `load(step)` of every step, in order, computed ahead by threads if there are any.

    Threads, since decoding and resizing leave the interpreter's lock free: nothing is copied
    between processes, and there is none to outlive a kill.
    """
    if not num_workers:
        yield from map(load, steps)
        return
    todo = iter(steps)
    take_gpu = distributed.gpu_of_this_thread()
    with ThreadPoolExecutor(num_workers, "loader", initializer=take_gpu) as pool:
        pending: collections.deque[Future[T]] = collections.deque()
        try:
            for step in itertools.islice(todo, num_workers * PREFETCH):
                pending.append(pool.submit(load, step))
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(load, step) for step in itertools.islice(todo, 1))
        finally:
            for future in pending:
                future.cancel()
