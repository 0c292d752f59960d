"""The order of pairs: nothing twice, nothing left out, whatever reads it."""

import itertools
from collections import Counter
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blip import distributed
from blip.config import OriginWeights, Pairs
from blip.data.order import ORIGINS, EpochOrder, PairOrder
from blip.errors import DataError

Example = tuple[int, int, int]  # shard, text, how often it was seen before


def settings(**changes: object) -> Pairs:
    values = {"shuffle_shards": 4, "epoch_splits": {}, "max_bad_records": 0}
    weights = OriginWeights(web=1.0, human=1.0, synthetic=1.0)
    return Pairs(**{**values, "origin_weights": weights, **changes})  # type: ignore[arg-type]


@st.composite
def corpora(draw: st.DrawFn) -> tuple[PairOrder, np.ndarray, list[str], Pairs, int]:
    rows = st.lists(st.integers(0, 9), min_size=3, max_size=3)
    counts = np.array(draw(st.lists(rows, min_size=1, max_size=12)))
    names = draw(st.lists(st.sampled_from("ab"), min_size=len(counts), max_size=len(counts)))
    splits = draw(st.sampled_from([{}, {"a": 2}, {"a": 3, "b": 2}, {"missing": 5}]))
    assume(all(names.count(n) >= splits[n] for n in splits if n in names))
    times = st.sampled_from([0.0, 0.3, 1.0, 1.0, 1.5, 2.0])
    weights = OriginWeights(**{origin: draw(times) for origin in ORIGINS})
    pairs = settings(
        shuffle_shards=draw(st.integers(1, 14)), origin_weights=weights, epoch_splits=splits
    )
    batch_size = draw(st.sampled_from([4, 12]))
    try:
        order = PairOrder(counts, names, pairs, batch_size, draw(st.integers(0, 9)), "here")
    except DataError:
        assume(False)
    return order, counts, names, pairs, batch_size


def origins_of(counts: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(3, dtype=np.int8), counts)[::-1]


def examples_of(order: PairOrder, counts: np.ndarray, epoch: int, shard: int) -> list[Example]:
    texts, seen = order.examples(epoch, shard, origins_of(counts[shard]))
    return [(shard, int(text), int(times)) for text, times in zip(texts, seen, strict=True)]


def seen_in(order: PairOrder, counts: np.ndarray, epoch: int, world: int) -> list[list[Example]]:
    """The batches of an epoch, put together from what each of several processes sees."""
    batches = []
    start = epoch * order.steps_per_epoch
    for step in range(start, start + order.steps_per_epoch):
        parts = []
        for rank in range(world):
            with (
                patch.object(distributed, "world_size", lambda: world),
                patch.object(distributed, "rank", lambda rank=rank: rank),
            ):
                places = [(window, window.place(index)) for window, index in order.of(step)]
            assert all(window.epoch == epoch for window, _ in places)
            parts.append([examples_of(order, counts, epoch, shard)[n] for _, (shard, n) in places])
        batch: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            batch[rank::world] = part
        batches.append(batch)
    return batches


@given(corpora(), st.integers(1, 5), st.integers(0, 7))
def test_an_epoch_sees_nothing_twice_and_leaves_out_the_rest_alone(
    corpus: tuple, world: int, epoch: int
) -> None:
    order, counts, _, pairs, batch_size = corpus
    batches = seen_in(order, counts, epoch, world)
    assert batches == seen_in(order, counts, epoch, 1)
    assert all(len(batch) == batch_size for batch in batches)
    shards = {s for s in range(len(counts)) if s in order._epoch(epoch).shards}
    whole = {e for shard in shards for e in examples_of(order, counts, epoch, shard)}
    seen = [example for batch in batches for example in batch]
    assert len(set(seen)) == len(seen) == order.steps_per_epoch * batch_size
    assert set(seen) <= whole
    if not pairs.epoch_splits and all(w.is_integer() for w in dict(pairs.origin_weights).values()):
        assert len(whole) == order.num_examples  # all epochs are of one length


@given(corpora(), st.integers(0, 7))
def test_texts_are_seen_as_often_as_their_origin_weighs(corpus: tuple, epoch: int) -> None:
    order, counts, _, pairs, _ = corpus
    shards = sorted(order._epoch(epoch).shards.tolist())
    times: Counter[tuple[int, int]] = Counter()
    for shard in shards:
        for _, text, _ in examples_of(order, counts, epoch, shard):
            times[shard, text] += 1
    for number, origin in enumerate(ORIGINS):
        weight = getattr(pairs.origin_weights, origin)
        places = [(s, t) for s in shards for t in np.flatnonzero(origins_of(counts[s]) == number)]
        found = [times[s, int(t)] for s, t in places]
        assert set(found) <= {int(weight), int(np.ceil(weight))}
        assert abs(sum(found) - weight * len(found)) < 1


def test_a_fraction_is_another_choice_every_epoch() -> None:
    counts = np.array([[40, 0, 0]])
    weights = OriginWeights(web=0.5, human=1.0, synthetic=1.0)
    order = PairOrder(counts, ["web"], settings(origin_weights=weights), 4, 0, "here")
    chosen = [examples_of(order, counts, epoch, 0) for epoch in range(12)]
    assert all(len(texts) == 20 for texts in chosen)
    assert len({tuple(texts) for texts in chosen}) == 12
    assert len({text for texts in chosen for text in texts}) == 40


def test_a_collection_in_five_parts_is_seen_once_in_five_epochs() -> None:
    counts = np.tile([[10, 0, 0]], (13, 1))
    names = ["laion"] * 11 + ["cc3m"] * 2
    order = PairOrder(counts, names, settings(epoch_splits={"laion": 5}), 10, 0, "here")
    assert order.steps_per_epoch == 4  # 2 of 11 shards in most epochs, 3 in one, and the 2 others
    epochs = [set(order._epoch(epoch).shards.tolist()) for epoch in range(10)]
    assert [len(shards) for shards in epochs[:5]] == [5, 4, 4, 4, 4]
    assert epochs[:5] == epochs[5:]
    assert Counter(s for shards in epochs[:5] for s in shards if s < 11) == Counter(range(11))
    assert all({11, 12} <= shards for shards in epochs)


@given(corpora(), st.integers(0, 3))
def test_a_step_needs_few_shards_and_the_next_ones_are_known(corpus: tuple, epoch: int) -> None:
    order, _, _, pairs, _ = corpus
    steps = range(epoch * order.steps_per_epoch, (epoch + 2) * order.steps_per_epoch)
    windows = [window for step in steps for window, _ in order.of(step)]
    assert all(len(window.shards) <= pairs.shuffle_shards for window in windows)
    turns = list(dict.fromkeys((w.epoch, w.number) for w in windows))
    assert turns == sorted(turns)  # a window is never come back to
    places = {(w.epoch, w.number): w for w in windows}
    for one, other in itertools.pairwise(turns):
        assert order.after(places[one], steps.stop) == places[other].shards
    assert order.after(windows[-1], steps.stop) == ()


def test_all_in_one_window_is_one_permutation() -> None:
    counts = np.array([[5, 0, 0], [0, 7, 2]])
    order = PairOrder(counts, ["a", "b"], settings(), 7, 3, "here")
    plain = EpochOrder(14, 7, 3, "here", "pairs")
    for step in range(6):
        places = [window.place(index) for window, index in order.of(step)]
        assert [(0, 5)[shard] + number for shard, number in places] == plain.of(step)[1]


def test_a_split_of_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    PairOrder(np.array([[9, 0, 0]]), ["web"], settings(epoch_splits={"lion": 5}), 2, 0, "here")
    assert "epoch_splits: here: there is no lion among web" in caplog.text


def test_too_few_shards_for_the_splits() -> None:
    counts = np.array([[5, 0, 0]] * 3)
    with pytest.raises(DataError, match="laion has 3 shards, which epoch_splits deals into 5"):
        PairOrder(counts, ["laion"] * 3, settings(epoch_splits={"laion": 5}), 2, 0, "here")
