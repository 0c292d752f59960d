"""Batches of pairs for training and of images for evaluation.

The batch of a step is a function of the seed and the step: a run that was killed goes on at any
step at once, and neither the number of workers nor that of processes changes what a step sees.
"""

import collections
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip import distributed
from blip.batch import Batch
from blip.config import Training
from blip.data.dataset import Dataset, Shard
from blip.data.images import ShardImages, decode_image
from blip.data.text import Tokenizer, clean_caption
from blip.data.transforms import TrainTransform, evaluation_resize, normalise
from blip.errors import DataError

PREFETCH = 2  # batches ahead of each worker
CACHE_BYTES = 256 * 2**20  # of decoded images that are kept for the next epoch


class PairLoader:
    """The pairs of several dataset versions: every text that was not dropped, with its image.

    Args:
        datasets: Dataset versions, in this order.
        tokenizer: Makes the tokens.
        training: Batch, image size, text lengths, augmentation, number of worker threads.
        seed: Decides order and augmentation.
        prompt: Put before every cleaned caption.
        device: Where the batches go.

    Raises:
        DataError: A caption has no image, or there are fewer pairs than a batch.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        tokenizer: Tokenizer,
        training: Training,
        seed: int,
        prompt: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        self._tokenizer, self._training = tokenizer, training
        self._seed, self._prompt, self._device = seed, prompt, torch.device(device)
        self._transform = TrainTransform(training.augmentation, training.image_size)
        shards = [shard for dataset in datasets for shard in dataset.shards]
        self._images = _Images(shards, CACHE_BYTES)
        pairs = [_read_pairs(shard) for shard in self._images.shards]
        sizes = [len(rows) for rows, _ in pairs]
        self._shards = np.repeat(np.arange(len(pairs), dtype=np.int32), sizes)
        self._rows = np.concatenate([rows for rows, _ in pairs] or [np.empty(0, np.int32)])
        self._texts = pa.chunked_array([texts for _, texts in pairs], pa.large_string())
        self._texts = self._texts.combine_chunks()
        names = ", ".join(str(dataset.path) for dataset in datasets)
        self._order = EpochOrder(self.num_examples, training.batch_size, seed, names, "pairs")

    @property
    def num_examples(self) -> int:
        """Number of pairs of an epoch, before the rest is cut off."""
        return len(self._rows)

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches of an epoch."""
        return self._order.steps_per_epoch

    def keys_of(self, step: int) -> list[str]:
        """Give the keys of the images that this process sees at a step, one a pair."""
        pairs = self._order.of(step)[1]
        return [self._images.key(self._shards[pair], self._rows[pair]) for pair in pairs]

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Give the batches of the steps from `start` to `stop`, prepared ahead by the workers.

        Raises:
            DataError: A shard was changed or an image cannot be decoded; shard and key are named.
        """
        steps = range(start, stop)
        for images, token_ids, mask, image_ids in ahead(
            self._load, steps, self._training.num_workers
        ):
            on_device = images.to(self._device, non_blocking=True)
            batch = Batch(normalise(on_device), token_ids, mask, image_ids)
            yield batch.to(self._device)

    def _load(self, step: int) -> tuple[Tensor, ...]:
        """Prepare this process's part of a global batch; its images are still uint8."""
        epoch, pairs = self._order.of(step)
        images, image_ids = [], []
        for pair in pairs:
            shard, row = int(self._shards[pair]), int(self._rows[pair])
            # The pair's own generator: its augmentation depends on no other pair.
            rng = np.random.default_rng((self._seed, epoch, pair))
            images.append(self._transform(self._images.read(shard, row), rng))
            image_ids.append(self._images.ids[shard][row])
        texts = [self._prompt + self._clean(self._texts[pair].as_py()) for pair in pairs]
        token_ids, mask = self._tokenizer.encode(texts, self._training.max_tokens)
        tensors = (torch.stack(images), token_ids, mask, torch.tensor(image_ids))
        return tuple(t.pin_memory() for t in tensors) if self._device.type == "cuda" else tensors

    def _clean(self, text: str) -> str:
        return clean_caption(text, self._training.max_words)


class EpochOrder:
    """Which examples a step sees, a function of the seed and the step.

    An epoch is a permutation of all examples; a global batch is the next `batch_size` of them, of
    which each process takes every `world_size`-th; the rest at the end of an epoch is not seen.

    Args:
        count: Number of examples.
        batch_size: Of all processes together.
        seed: Decides the permutations.
        where: Where they lie, for the error.
        what: What they are called there.

    Raises:
        DataError: There are fewer examples than a batch.
    """

    def __init__(self, count: int, batch_size: int, seed: int, where: str, what: str) -> None:
        if count < batch_size:
            raise DataError(
                f"{where}: {count} {what} are fewer than batch_size {batch_size}: "
                "lower it or add data"
            )
        self.count, self._batch_size, self._seed = count, batch_size, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)
        self._lock = threading.Lock()

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches of an epoch."""
        return self.count // self._batch_size

    def of(self, step: int) -> tuple[int, list[int]]:
        """Give the epoch of a step, and the numbers of the examples that this process takes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        with self._lock:  # the workers ask at once
            if epoch != self._epoch:
                rng = np.random.default_rng((self._seed, epoch))
                self._epoch, self._permutation = epoch, rng.permutation(self.count)
            permutation = self._permutation
        batch = permutation[position * self._batch_size : (position + 1) * self._batch_size]
        return epoch, batch[distributed.rank() :: distributed.world_size()].tolist()


def image_batches(
    dataset: Dataset, size: int, batch_size: int
) -> Iterator[tuple[list[str], Tensor]]:
    """Give keys and images (B, 3, S, S) float32 of a dataset version, each image once, in order.

    Raises:
        DataError: A shard was changed or an image cannot be decoded; shard and key are named.
    """
    shards = {shard.images_digest: shard for shard in dataset.shards}
    images = _Images(list(shards.values()), cache_bytes=0)
    places = [(shard, row) for shard, ids in enumerate(images.ids) for row in range(len(ids))]
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        keys = [images.key(shard, row) for shard, row in batch]
        pixels = [evaluation_resize(images.read(shard, row), size) for shard, row in batch]
        yield keys, normalise(torch.stack(pixels))


class _Images:
    """The images of shards, by shard and row.

    Args:
        shards: The shards.
        cache_bytes: How much of decoded images to keep. What was read first stays: where an epoch
            does not fit, to drop the oldest would drop each image just before its turn.

    Attributes:
        shards: The shards.
        ids: A number for every image of every shard, equal for equal keys alone.
    """

    def __init__(self, shards: list[Shard], cache_bytes: int) -> None:
        self.shards = shards
        self._cache: dict[tuple[int, int], Tensor] = {}
        self._room = cache_bytes
        self._contents = [ShardImages(shard) for shard in shards]
        records = [shard.read_records().select(["key", "width", "height"]) for shard in shards]
        self._keys = [table["key"].combine_chunks() for table in records]
        self._pixels = [
            table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
            for table in records
        ]
        self.ids = [_numbers(keys) for keys in self._keys]

    def key(self, shard: int, row: int) -> str:
        """Give an image's key."""
        return str(self._keys[shard][row].as_py())

    def read(self, shard: int, row: int) -> Tensor:
        """Read and decode an image: (3, H, W) uint8, not to be written to."""
        cached = self._cache.get((shard, row))
        if cached is not None:
            return cached
        try:
            # What the record says bounds the decoding, whatever the bytes say.
            image = decode_image(self._contents[shard].read(row), int(self._pixels[shard][row]))
        except DataError as error:
            path, key = self.shards[shard].images, self.key(shard, row)
            raise DataError(f"{path}: image {key}: {error}") from None
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._cache[shard, row] = image
        return image


def _read_pairs(shard: Shard) -> tuple[NDArray[np.int32], pa.LargeStringArray]:
    """Give the image's row and the text of every caption of a shard that was not dropped."""
    captions = shard.read_captions()
    captions = captions.filter(pc.fill_null(captions["kept"], True))
    rows = pc.index_in(captions["key"], value_set=shard.read_records()["key"].combine_chunks())
    if rows.null_count:
        key = captions["key"].filter(pc.is_null(rows))[0].as_py()
        raise DataError(
            f"{shard.captions}: caption of image {key}, which {shard.records} does not hold: "
            "the two do not belong together; ingest again"
        )
    return rows.to_numpy().astype(np.int32), captions["text"].combine_chunks().cast(
        pa.large_string()
    )


def _numbers(keys: pa.StringArray) -> NDArray[np.int64]:
    """Give a number for each key: its first 60 bits, so that no table of all keys is needed.

    A key is the sha256 of an image. Among 100 million, some two agree with probability 0.4 %.
    """
    ascii_codes = np.array(keys.to_pylist(), dtype="S15").view(np.uint8).reshape(-1, 15)
    digits = (ascii_codes & 15) + 9 * (ascii_codes >> 6)  # hexadecimal, either case
    return digits.astype(np.int64) @ (1 << np.arange(56, -4, -4, dtype=np.int64))


def ahead(
    load: Callable[[int], tuple[Tensor, ...]], steps: range, num_workers: int
) -> Iterator[tuple[Tensor, ...]]:
    """Give `load(step)` of every step, in order, computed ahead by threads if there are any.

    Threads, since decoding and resizing leave the interpreter's lock free: nothing is copied
    between processes, and there is none to outlive a kill.
    """
    if not num_workers:
        yield from map(load, steps)
        return
    todo = iter(steps)
    with ThreadPoolExecutor(num_workers, thread_name_prefix="loader") as pool:
        pending: collections.deque[Future[tuple[Tensor, ...]]] = collections.deque()
        try:
            for step in itertools.islice(todo, num_workers * PREFETCH):
                pending.append(pool.submit(load, step))
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(load, step) for step in itertools.islice(todo, 1))
        finally:
            for future in pending:
                future.cancel()
