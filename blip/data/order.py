"""Which examples a step sees: a function of the seed and the step, whatever reads them.

So a run that was killed goes on at any step at once, and neither the number of workers nor that of processes changes
what a step sees.
"""

import functools
import logging
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blip import distributed
from blip.config import Pairs
from blip.errors import DataError

log = logging.getLogger(__name__)

ORIGINS = ("web", "human", "synthetic")

# What a generator of (seed, epoch, number, use) is for; an example's augmentation has no use, which is 0.
_WINDOW, _ROUNDING, _CHOICE = 1, 2, 3

Integers = NDArray[np.int64]


class EpochOrder:
    """The order of numbered examples.

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
        _check(count, batch_size, where, what)
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


class Window:
    """Some shards whose examples are read mixed with each other.

    Args:
        epoch: Counted from 0.
        number: Which window of the epoch.
        shards: The numbers of its shards.
        sizes: How many examples the epoch sees of each.
        seed: For the permutation of the examples.
    """

    def __init__(
        self, epoch: int, number: int, shards: Integers, sizes: Integers, seed: Sequence[int]
    ) -> None:
        self.epoch, self.number, self.shards = epoch, number, tuple(shards.tolist())
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._permutation = np.random.default_rng(seed).permutation(len(self))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, index: int) -> tuple[int, int]:
        """Give shard and number within its examples of what is read as `index`-th; after the last comes the first."""
        number = self._permutation[index % len(self)]
        position = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.shards[position], int(number - self._starts[position])


class _Epoch(NamedTuple):
    shards: Integers  # in the order of reading
    extras: Integers  # (shards, origins): how many texts are seen once more than the others
    sizes: Integers  # examples of each of these shards
    starts: Integers  # of its windows, and the end


class PairOrder:
    """The order of the pairs of many shards, of which only a few need to be at hand at any time.

    The shards of an epoch are shuffled and dealt into windows of `shuffle_shards`; the examples of a
    window are permuted together. Where all shards fit into one window, that is one permutation of all
    pairs. A text of an origin with weight 2.4 is seen twice an epoch, and two in five of them once
    more, others every time. Of a collection with n splits, an epoch sees the shards of split
    `epoch mod n`.

    Every epoch has the steps of the shortest one, so that schedules count in equal epochs; what is
    left at the end of an epoch is not seen in it.

    Args:
        counts: (shards, origins): the number of texts to see.
        collections: The name of each shard's collection; what they come from.
        pairs: The settings.
        batch_size: Of all processes together.
        seed: Decides everything.
        where: Where they lie, for errors.

    Raises:
        DataError: There are fewer pairs than a batch, or fewer shards than splits.
    """

    def __init__(
        self,
        counts: Integers,
        collections: Sequence[str],
        pairs: Pairs,
        batch_size: int,
        seed: int,
        where: str,
    ) -> None:
        self._counts, self._batch_size, self._seed = counts, batch_size, seed
        self._shuffle_shards = pairs.shuffle_shards
        weights = np.array([getattr(pairs.origin_weights, origin) for origin in ORIGINS])
        self.times = np.floor(weights).astype(np.int64)
        self._fractions = weights - self.times
        self._splits, self._turns = _deal(collections, pairs.epoch_splits, where)
        cycle = math.lcm(1, *set(self._splits.tolist()))
        self.num_examples = min(self._least(epoch) for epoch in range(cycle))
        _check(self.num_examples, batch_size, where, "pairs")
        self._lock = threading.Lock()
        self._epoch = functools.lru_cache(maxsize=2)(self._lay_out)
        self._window = functools.lru_cache(maxsize=3)(self._permute)

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches of an epoch."""
        return self.num_examples // self._batch_size

    def of(self, step: int) -> list[tuple[Window, int]]:
        """Give window and index within it of each example that this process takes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first, last = position * self._batch_size, (position + 1) * self._batch_size
        mine = range(first + distributed.rank(), last, distributed.world_size())
        with self._lock:  # the workers ask at once
            return [self._find(epoch, index) for index in mine]

    def after(self, window: Window, stop: int) -> tuple[int, ...]:
        """Give the shards of the window that follows, if a step before `stop` reads it."""
        with self._lock:
            epoch = window.epoch
            index = int(self._epoch(epoch).starts[window.number + 1])
            if index >= self.steps_per_epoch * self._batch_size:
                epoch, index = epoch + 1, 0
            if epoch * self.steps_per_epoch + index // self._batch_size >= stop:
                return ()
            following, _ = self._find(epoch, index)
            return following.shards

    def examples(
        self, epoch: int, shard: int, origins: NDArray[np.int8]
    ) -> tuple[Integers, Integers]:
        """Give, for each example that an epoch sees of a shard, its text and how often it was seen before.

        Args:
            epoch: Counted from 0.
            shard: One of this epoch.
            origins: (texts,): the number of each text's origin in `ORIGINS`.
        """
        with self._lock:
            layout = self._epoch(epoch)
        extras = layout.extras[int(np.flatnonzero(layout.shards == shard)[0])]
        times = self.times[origins]
        for origin in np.flatnonzero(extras):
            rng = self._rng(epoch, shard * len(ORIGINS) + int(origin), _CHOICE)
            texts = np.flatnonzero(origins == origin)
            times[rng.choice(texts, extras[origin], replace=False)] += 1
        rounds = [np.flatnonzero(times > seen) for seen in range(int(times.max(initial=0)))]
        texts = np.concatenate(rounds or [np.empty(0, np.int64)])
        return texts, np.repeat(np.arange(len(rounds)), [len(found) for found in rounds])

    def _find(self, epoch: int, index: int) -> tuple[Window, int]:
        """Give window and index within it of what an epoch sees as `index`-th."""
        starts = self._epoch(epoch).starts
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return self._window(epoch, number), index - int(starts[number])

    def _lay_out(self, epoch: int) -> _Epoch:
        shards = np.flatnonzero(epoch % self._splits == self._turns)
        if len(shards) > self._shuffle_shards:
            shards = np.random.default_rng((self._seed, epoch)).permutation(shards)
        counts = self._counts[shards]
        extras = np.zeros_like(counts)
        for origin in np.flatnonzero(self._fractions):
            # Rounding the running sum keeps the total of an epoch within one of the exact one.
            start = self._rng(epoch, int(origin), _ROUNDING).random()
            sums = np.floor(self._fractions[origin] * np.cumsum(counts[:, origin]) + start)
            extras[:, origin] = np.diff(sums, prepend=0)
        sizes = (counts * self.times + extras).sum(axis=1)
        sums = np.concatenate([[0], np.cumsum(sizes)])
        starts = sums[[*range(0, len(shards), self._shuffle_shards), len(shards)]]
        return _Epoch(shards, extras, sizes, starts)

    def _permute(self, epoch: int, number: int) -> Window:
        layout = self._epoch(epoch)
        some = self._part(number)
        alone = len(layout.shards) <= self._shuffle_shards
        seed = (self._seed, epoch) if alone else (self._seed, epoch, number, _WINDOW)
        return Window(epoch, number, layout.shards[some], layout.sizes[some], seed)

    def _part(self, number: int) -> slice:
        return slice(number * self._shuffle_shards, (number + 1) * self._shuffle_shards)

    def _least(self, epoch: int) -> int:
        """Give the number of examples that an epoch has at least."""
        counts = self._counts[epoch % self._splits == self._turns].sum(axis=0)
        return int((counts * self.times + np.floor(self._fractions * counts)).sum())

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, *numbers))


def _deal(
    collections: Sequence[str], epoch_splits: dict[str, int], where: str
) -> tuple[Integers, Integers]:
    """Give each shard's number of splits, and which of them it is in: shards are dealt in turn."""
    if strange := sorted(epoch_splits.keys() - set(collections)):
        known = ", ".join(sorted(set(collections)))
        log.warning("epoch_splits: %s: there is no %s among %s", where, strange[0], known)
    splits = np.array([epoch_splits.get(name, 1) for name in collections], np.int64)
    turns = np.zeros_like(splits)
    for name in {name for name in collections if name in epoch_splits}:
        members = np.flatnonzero(np.array(collections) == name)
        if len(members) < epoch_splits[name]:
            raise DataError(
                f"{where}: collection {name} has {len(members)} shards, which epoch_splits deals "
                f"into {epoch_splits[name]}: lower it, or ingest with a smaller shard_size"
            )
        turns[members] = np.arange(len(members)) % epoch_splits[name]
    return splits, turns


def _check(count: int, batch_size: int, where: str, what: str) -> None:
    if count < batch_size:
        raise DataError(
            f"{where}: {count} {what} are fewer than batch_size {batch_size}: lower it or add data"
        )
