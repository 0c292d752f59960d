"""The loader: every pair once an epoch, the same in any number of workers, from any step on."""

import hashlib
import io
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from benchmarks.s3 import environment, serve
from blip import distributed, remote
from blip.batch import Batch
from blip.config import FinetuneCaptioning, OriginWeights, load_config
from blip.data.dataset import (
    CAPTIONS,
    RECORDS,
    Dataset,
    Shard,
    caption_id,
    open_dataset,
    write_manifest,
    write_table,
)
from blip.data.loader import PairLoader, image_batches
from blip.data.tar import TarWriter
from blip.data.text import Tokenizer, train_vocabulary
from blip.data.transforms import normalise
from blip.errors import DataError
from tests.ports import free_port

PARAMS = Path(__file__).parents[2] / "blip/presets/demo.yaml"
SIZE = 32
Drop = Callable[[int, int], bool | None]


def picture(number: int) -> bytes:
    """A PNG whose colour tells which image it is."""
    pixels = np.full((SIZE, SIZE, 3), (number % 256, number // 256, 7), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_dataset(
    path: Path,
    images: range,
    captions: int = 2,
    shard_size: int = 5,
    kept: Drop = lambda i, j: None,
    origins: Sequence[str] = ("human",),
    bad: Container[int] = (),
) -> Dataset:
    """Write a dataset version of numbered images, of which some are `bad`, `captions` texts each."""
    shards = [
        _write_shard(path, numbers, captions, kept, origins, bad)
        for numbers in (images[i : i + shard_size] for i in range(0, len(images), shard_size))
    ]
    write_manifest(path, shards, {"format": "test"}, {})
    return open_dataset(path)


def _write_shard(
    path: Path,
    numbers: range,
    captions: int,
    kept: Drop,
    origins: Sequence[str],
    bad: Container[int],
) -> Shard:
    (path / "images").mkdir(parents=True, exist_ok=True)
    tar = path / f"images/{numbers[0]}.tar"
    records, texts = [], []
    with TarWriter(tar) as writer:
        for i in numbers:
            data = picture(i)
            key = hashlib.sha256(data).hexdigest()
            data = data[:60] if i in bad else data
            offset = writer.add(f"{key}.png", data)
            records.append([key, f"{i}.png", SIZE, SIZE, "png", offset, len(data)])
            for j in range(captions):
                text = f"image {i} text {j}"
                origin = origins[j % len(origins)]
                row = [caption_id(key, origin, text), key, text, origin, *[None] * 5]
                texts.append([*row, kept(i, j), None])
    tables = [
        pa.table(
            [pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), schema, strict=True)],
            schema=schema,
        )
        for rows, schema in ((records, RECORDS), (texts, CAPTIONS))
    ]
    files = [path / f"{kind}/{numbers[0]}.parquet" for kind in ("records", "captions")]
    digests = [write_table(file, table) for file, table in zip(files, tables, strict=True)]
    return Shard(tar, *files, writer.digest, *digests, len(records), len(texts))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary((f"image {i} text {j}" for i in range(300) for j in range(9)), 500, folder)
    return Tokenizer(folder / "vocab.txt")


def training(pairs: dict[str, Any] | None = None, **changes: Any) -> FinetuneCaptioning:
    calm = {"image_size": SIZE, "batch_size": 4, "max_words": 30, "max_tokens": 30}
    section = load_config(PARAMS).finetune.captioning
    calm["pairs"] = section.pairs.model_copy(update=pairs or {})
    return section.model_copy(update={**calm, **changes})


def pairs_of(batch: Batch, tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """What the batch shows: the image's number by its colour, and its text."""
    images = (raw(batch)[:, :2] * 255).round().int().tolist()
    numbers = [red + 256 * green for red, green in images]
    return list(zip(numbers, map(tokenizer.decode, batch.token_ids.tolist()), strict=True))


def raw(batch: Batch) -> torch.Tensor:
    levels = normalise(
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    )
    black, white = levels
    return ((batch.images - black) / (white - black))[:, :, 0, 0]


def equal(a: Batch, b: Batch) -> bool:
    names = ("images", "token_ids", "attention_mask", "image_ids")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_an_epoch_holds_every_pair_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    web = write_dataset(tmp_path / "web", range(7), captions=1)
    human = write_dataset(tmp_path / "human", range(100, 107), captions=3)
    loader = PairLoader([web, human], tokenizer, training(), seed=3)
    assert (loader.num_examples, loader.steps_per_epoch) == (28, 7)
    expected = {(i, f"image {i} text 0") for i in range(7)}
    expected |= {(i, f"image {i} text {j}") for i in range(100, 107) for j in range(3)}
    epochs = []
    for epoch in range(2):
        batches = loader.iterate(epoch * 7, epoch * 7 + 7)
        epochs.append([pair for batch in batches for pair in pairs_of(batch, tokenizer)])
        assert len(epochs[-1]) == 28
        assert set(epochs[-1]) == expected
    assert epochs[0] != epochs[1]


def test_dropped_texts_are_not_seen_and_unjudged_ones_are(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    verdicts = {0: True, 1: False, 2: None}
    data = write_dataset(tmp_path / "d", range(8), captions=3, kept=lambda i, j: verdicts[j])
    loader = PairLoader([data], tokenizer, training(), seed=0)
    seen = {text for b in loader.iterate(0, 4) for _, text in pairs_of(b, tokenizer)}
    assert seen == {f"image {i} text {j}" for i in range(8) for j in (0, 2)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_windows_of_shards_hold_every_pair_once_and_close_what_is_past(
    tmp_path: Path, tokenizer: Tokenizer, num_workers: int
) -> None:
    data = write_dataset(tmp_path / "d", range(60), captions=2)  # 12 shards
    config = training({"shuffle_shards": 2}, num_workers=num_workers)
    loader = PairLoader([data], tokenizer, config, seed=3)
    everything = {(i, f"image {i} text {j}") for i in range(60) for j in range(2)}
    epochs = []
    for epoch in range(2):
        seen = []
        for batch in loader.iterate(epoch * 30, epoch * 30 + 30):
            seen += pairs_of(batch, tokenizer)
            assert len(loader._shelf._open) <= 6
        assert len(seen) == 120
        assert set(seen) == everything
        epochs.append(seen)
    assert epochs[0] != epochs[1]
    first = [number // 5 for number, _ in epochs[0][:20]]
    assert len(set(first)) == 2  # the first 20 pairs are those of two shards, mixed
    assert first != sorted(first)
    again = PairLoader([data], tokenizer, training({"shuffle_shards": 2}), seed=3)
    found = [pair for batch in again.iterate(17, 23) for pair in pairs_of(batch, tokenizer)]
    assert found == epochs[0][17 * 4 : 23 * 4]


def test_texts_are_weighted_by_their_origin(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dataset(tmp_path / "d", range(8), captions=2, origins=("web", "synthetic"))
    weights = OriginWeights(web=0.5, human=1.0, synthetic=2.0)
    loader = PairLoader([data], tokenizer, training({"origin_weights": weights}), seed=3)
    assert (loader.num_examples, loader.steps_per_epoch) == (20, 5)
    seen = [pair for batch in loader.iterate(0, 5) for pair in pairs_of(batch, tokenizer)]
    texts = Counter(text for _, text in seen)
    assert {texts[f"image {i} text 1"] for i in range(8)} == {2}
    assert sum(texts[f"image {i} text 0"] for i in range(8)) == 4


def test_a_text_that_is_seen_twice_is_augmented_anew(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dataset(tmp_path / "d", range(4), captions=1)
    augmentation = training().augmentation.model_copy(update={"flip": 0.5})
    weights = OriginWeights(web=1.0, human=16.0, synthetic=1.0)
    config = training({"origin_weights": weights}, augmentation=augmentation, batch_size=64)
    loader = PairLoader([data], tokenizer, config, seed=3)
    order = loader._order.of(0)
    numbers = [loader._find(window, index).number for window, index in order]
    assert sorted(numbers) == list(range(64))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_records_are_passed_over_up_to_a_limit(
    tmp_path: Path, tokenizer: Tokenizer, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_dataset(tmp_path / "d", range(12), captions=1, bad={2, 7})

    def read(limit: int, workers: int = num_workers) -> tuple[PairLoader, list[Batch]]:
        config = training({"max_bad_records": limit}, num_workers=workers)
        loader = PairLoader([data], tokenizer, config, seed=1)
        return loader, list(loader.iterate(0, 6))

    loader, batches = read(2)
    seen = [pairs_of(batch, tokenizer) for batch in batches]
    assert all(len(batch) == 4 for batch in seen)
    assert all(text == f"image {i} text 0" for batch in seen for i, text in batch)
    assert set(range(12)) - {i for batch in seen for i, _ in batch} == {2, 7}
    assert loader.bad_records == 2
    passed = [record.message for record in caplog.records if "passed over" in record.message]
    assert len(passed) == 2  # each is named once, though two epochs met it
    assert all(re.search(r"images/\d+.tar: image [0-9a-f]{64}: .* of 2\)", line) for line in passed)
    _, others = read(5, workers=3 - num_workers)
    assert all(map(equal, batches, others))
    for step, batch in enumerate(seen):
        keys = [hashlib.sha256(picture(i)).hexdigest() for i, _ in batch]
        assert loader.keys_of(step) == keys
    message = r"images/\d+.tar: image [0-9a-f]{64}: .* after 1 .*: take the collection in again"
    with pytest.raises(DataError, match=message):
        read(1)
    with pytest.raises(DataError, match=r"image [0-9a-f]{64}: .*raise pairs.max_bad_records"):
        read(0)


def test_replacements_do_not_depend_on_the_processes(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "d", range(12), captions=1, bad={2, 7})
    config = training({"max_bad_records": 2})
    alone = PairLoader([data], tokenizer, config, 1)
    whole = [pairs_of(batch, tokenizer) for batch in alone.iterate(0, 6)]
    for rank in range(2):
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        part = PairLoader([data], tokenizer, config, 1).iterate(0, 6)
        assert [pairs_of(batch, tokenizer) for batch in part] == [b[rank::2] for b in whole]


def test_all_images_are_bad(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dataset(tmp_path / "d", range(4), captions=1, bad=set(range(4)))
    loader = PairLoader([data], tokenizer, training({"max_bad_records": 9}), 1)
    with pytest.raises(DataError, match="none of the 4 images"):
        next(loader.iterate(0, 1))


def test_manifest_without_counts_is_counted_and_wrong_ones_are_refused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    data = write_dataset(tmp_path / "d", range(8), captions=2, kept=lambda i, j: j == 0)
    assert all(shard.texts is None for shard in data.shards)
    assert PairLoader([data], tokenizer, training(), 1).num_examples == 8
    shards = [replace(shard, texts={"human": 5 - i}) for i, shard in enumerate(data.shards)]
    loader = PairLoader([replace(data, shards=tuple(shards))], tokenizer, training(), 1)
    with pytest.raises(DataError, match=r"captions/5.parquet: has \[0, 3, 0\] texts .*\[0, 4, 0\]"):
        list(loader.iterate(0, 2))
    shards = [replace(shard, texts={"alien": 5}) for shard in data.shards]
    with pytest.raises(DataError, match="origin 'alien' is none of web, human, synthetic"):
        PairLoader([replace(data, shards=tuple(shards))], tokenizer, training(), 1)


def test_missing_shard_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dataset(tmp_path / "d", range(4))
    loader = PairLoader([data], tokenizer, training(), seed=0)
    next(loader.iterate(0, 1))
    data.shards[0].images.unlink()
    with pytest.raises(DataError, match=r"images/0.tar: image .*cannot be read: No such file"):
        list(PairLoader([data], tokenizer, training(), seed=0).iterate(0, 1))
    uncached = PairLoader([data], tokenizer, training({"shuffle_shards": 1}), seed=0)
    with pytest.raises(DataError, match=r"images/0.tar: image .*cannot be read: No such file"):
        list(uncached.iterate(0, 1))


def test_order_depends_on_the_seed_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dataset(tmp_path / "d", range(12))
    first, again, other = (PairLoader([data], tokenizer, training(), seed=s) for s in (1, 1, 2))
    assert all(map(equal, first.iterate(0, 9), again.iterate(0, 9)))
    assert not all(map(equal, first.iterate(0, 9), other.iterate(0, 9)))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_any_step_is_reached_at_once_with_any_workers(
    tmp_path: Path, tokenizer: Tokenizer, num_workers: int
) -> None:
    data = write_dataset(tmp_path / "d", range(12))
    wild = training().augmentation.model_copy(
        update={"crop_scale": (0.2, 1.0), "flip": 0.5, "randaugment": True}
    )
    whole = PairLoader([data], tokenizer, training(augmentation=wild), seed=1)
    config = training(augmentation=wild, num_workers=num_workers)
    part = PairLoader([data], tokenizer, config, seed=1)
    expected = list(whole.iterate(0, 15))[4:11]
    found = list(part.iterate(4, 11))
    assert len(found) == 7
    assert all(map(equal, expected, found))


def test_processes_share_the_global_batch(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "d", range(12))
    alone = [
        pairs_of(b, tokenizer) for b in PairLoader([data], tokenizer, training(), 5).iterate(0, 6)
    ]
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        loader = PairLoader([data], tokenizer, training(), 5)
        parts.append([pairs_of(b, tokenizer) for b in loader.iterate(0, 6)])
    for whole, even, odd in zip(alone, *parts, strict=True):
        assert (whole[::2], whole[1::2]) == (even, odd)


def test_image_ids_are_equal_for_one_image_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    web = write_dataset(tmp_path / "web", range(10), captions=1)
    synthetic = write_dataset(tmp_path / "synthetic", range(10), captions=2, shard_size=3)
    loader = PairLoader([web, synthetic], tokenizer, training(), seed=0)
    ids: dict[int, set[int]] = {}
    for batch in loader.iterate(0, loader.steps_per_epoch):
        numbers = [n for n, _ in pairs_of(batch, tokenizer)]
        for number, image_id in zip(numbers, batch.image_ids.tolist(), strict=True):
            ids.setdefault(number, set()).add(image_id)
    assert all(len(found) == 1 for found in ids.values())
    assert len(set.union(*ids.values())) == len(ids) == 10
    assert min(set.union(*ids.values())) >= 0


def test_prompt_stands_before_the_cleaned_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dataset(tmp_path / "d", range(4))
    config = training(max_words=3)
    loader = PairLoader([data], tokenizer, config, seed=0, prompt="text text ")
    (batch,) = loader.iterate(0, 1)
    for number, text in pairs_of(batch, tokenizer):
        assert text == f"text text image {number} text"


def test_too_few_pairs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dataset(tmp_path / "d", range(3), captions=1)
    with pytest.raises(DataError, match="3 pairs are fewer than batch_size 4: lower it"):
        PairLoader([data], tokenizer, training(), seed=0)


def test_caption_without_its_image(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dataset(tmp_path / "d", range(5))
    other = write_dataset(tmp_path / "e", range(5, 10))
    mixed = replace(data, shards=(replace(data.shards[0], captions=other.shards[0].captions),))
    loader = PairLoader([mixed], tokenizer, training(), seed=0)
    with pytest.raises(DataError, match=r"captions/5.parquet: caption of image .* does not hold"):
        next(loader.iterate(0, 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tampered_shard_is_named(tmp_path: Path, tokenizer: Tokenizer, num_workers: int) -> None:
    data = write_dataset(tmp_path / "d", range(4))
    content = bytearray(data.shards[0].images.read_bytes())
    content[700] ^= 1
    data.shards[0].images.write_bytes(content)
    loader = PairLoader([data], tokenizer, training(num_workers=num_workers), seed=0)
    with pytest.raises(DataError, match=r"images/0.tar: image [0-9a-f]{64}: .*digest"):
        list(loader.iterate(0, 2))
    with pytest.raises(DataError, match=r"images/0.tar: image [0-9a-f]{64}: .*digest"):
        list(image_batches(data, SIZE, 4))


def test_image_larger_than_its_record_is_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", range(4))
    table = data.shards[0].read_records()
    small = table.set_column(2, RECORDS.field("width"), pa.array([SIZE // 2] * 4, pa.int32()))
    write_table(data.shards[0].records, small)
    with pytest.raises(DataError, match=r"image [0-9a-f]{64}: .*more than the 512"):
        list(image_batches(data, SIZE, 4))


def test_abandoned_iteration_leaves_no_thread(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dataset(tmp_path / "d", range(12))
    batches: Iterator[Batch] = PairLoader([data], tokenizer, training(num_workers=2), 0).iterate(
        0, 99
    )
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]


def test_image_batches_give_every_image_once_in_order(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", range(12), shard_size=5)
    twice = replace(data, shards=(*data.shards, data.shards[0]))  # as after bootstrapping
    batches = list(image_batches(twice, 16, 7))
    assert [images.shape for _, images in batches] == [(7, 3, 16, 16), (5, 3, 16, 16)]
    assert [key for keys, _ in batches for key in keys] == data.records()["key"].to_pylist()
    assert len({key for keys, _ in batches for key in keys}) == 12


@pytest.fixture
def remote_data(tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A dataset version of 8 shards in `s3://bucket/web`, also in `tmp_path / "web"`."""
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    write_dataset(tmp_path / "web", range(40), captions=2)
    shutil.copytree(tmp_path / "web", bucket / "web")
    return open_dataset("s3://bucket/web")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bucket_gives_the_batches_of_the_disk(
    tmp_path: Path, tokenizer: Tokenizer, remote_data: Dataset, num_workers: int
) -> None:
    config = training({"shuffle_shards": 2}, num_workers=num_workers)
    here = PairLoader([open_dataset(tmp_path / "web")], tokenizer, config, seed=2)
    there = PairLoader([remote_data], tokenizer, config, seed=2)
    assert remote_data.digest == open_dataset(tmp_path / "web").digest
    assert all(map(equal, here.iterate(3, 25), there.iterate(3, 25)))
    copies = list((tmp_path / "copies").glob("*.tar"))
    assert 5 < len(copies) <= 8
    for keys, _ in image_batches(remote_data, 16, 40):
        assert keys == open_dataset(tmp_path / "web").records()["key"].to_pylist()


def test_copies_of_shards_are_bounded(
    tmp_path: Path, tokenizer: Tokenizer, remote_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = max(path.stat().st_size for path in (tmp_path / "web").rglob("*.*"))
    config = training({"shuffle_shards": 1}, num_workers=2)
    monkeypatch.setenv("BLIP_SHARD_CACHE_GB", str(6 * size / 1e9))
    loader = PairLoader([remote_data], tokenizer, config, seed=2)
    here = PairLoader([open_dataset(tmp_path / "web")], tokenizer, config, seed=2)
    for batch, same in zip(loader.iterate(0, 60), here.iterate(0, 60), strict=True):
        assert equal(batch, same)
        copies = [p for p in (tmp_path / "copies").iterdir() if p.suffix in (".tar", ".parquet")]
        assert len([p for p in copies if p.suffix == ".tar"]) <= 6
    monkeypatch.setenv("BLIP_SHARD_CACHE_GB", str(0.5 * size / 1e9))
    shutil.rmtree(tmp_path / "copies")
    with pytest.raises(DataError, match=r"needed at once, more than BLIP_SHARD_CACHE_GB .*lower"):
        list(PairLoader([remote_data], tokenizer, config, seed=2).iterate(0, 60))


@pytest.mark.parametrize("fault", ["missing", "truncated", "tampered"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_faulty_shard_in_a_bucket_is_named(
    tokenizer: Tokenizer, bucket: Path, remote_data: Dataset, fault: str, num_workers: int
) -> None:
    tar = bucket / "web/images/10.tar"
    content = tar.read_bytes()
    match fault:
        case "missing":
            tar.unlink()
        case "truncated":
            tar.write_bytes(content[:1000])
        case "tampered":
            tar.write_bytes(content[:700] + b"x" + content[701:])
    why = "is not there" if fault == "missing" else "its digest is not the manifest's"
    config = training({"shuffle_shards": 2}, num_workers=num_workers)
    loader = PairLoader([remote_data], tokenizer, config, seed=2)
    with pytest.raises(
        DataError, match=rf"image [0-9a-f]{{64}}: s3://bucket/web/images/10.tar: .*{why}"
    ):
        list(loader.iterate(0, 40))
    tar.write_bytes(content)
    time.sleep(0.1)  # the server remembers for 10 ms what a folder holds
    assert len(list(loader.iterate(0, 40))) == 40  # mended, the same loader goes on


def test_server_that_goes_away_is_waited_for(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = fsspec.get_filesystem_class("s3")
    monkeypatch.setattr(stores, "retries", 1)  # its own patience, beneath ours
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(remote, "PAUSE", 1.0)  # 15 s in all, in which the server must come back
    monkeypatch.setenv("BLIP_SHARD_CACHE", str(tmp_path / "copies"))
    here = write_dataset(tmp_path / "s3/bucket/web", range(20), captions=2)
    config = training({"shuffle_shards": 1})
    expected = list(PairLoader([here], tokenizer, config, seed=2).iterate(0, 10))
    found, failures = [], []

    def read(batches: Iterator[Batch]) -> None:
        try:
            found.extend(batches)
        except DataError as error:
            failures.append(str(error))

    with serve(tmp_path / "s3", free_port()) as address:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        stores.clear_instance_cache()
        loader = PairLoader([open_dataset("s3://bucket/web")], tokenizer, config, seed=2)
        batches = loader.iterate(0, 10)
        found.append(next(batches))
    reader = threading.Thread(target=read, args=(batches,))
    reader.start()
    time.sleep(0.5)
    with serve(tmp_path / "s3", int(address.rpartition(":")[2])):
        reader.join()
    assert not failures
    assert all(map(equal, expected, found))
    assert len(found) == 10
    shutil.rmtree(tmp_path / "copies")
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    read(loader.iterate(10, 20))
    stores.clear_instance_cache()
    assert "s3://bucket/web/" in failures[0]
    assert "failed 5 times: Could not connect to the endpoint" in failures[0]


def test_truncated_table_in_a_bucket_is_named(
    tokenizer: Tokenizer, bucket: Path, remote_data: Dataset
) -> None:
    table = bucket / "web/captions/10.parquet"
    table.write_bytes(table.read_bytes()[:300])
    shards = tuple(replace(shard, texts={"human": 10}) for shard in remote_data.shards)
    loader = PairLoader([replace(remote_data, shards=shards)], tokenizer, training(), seed=2)
    with pytest.raises(DataError, match=r"s3://bucket/web/captions/10.parquet: .*its digest"):
        list(loader.iterate(0, 20))


def test_no_dataset_behind_the_url(bucket: Path) -> None:
    with pytest.raises(DataError, match=r"s3://bucket/none/manifest.json: is not there"):
        open_dataset("s3://bucket/none")
    (bucket / "manifest.json").write_text("{")
    time.sleep(0.1)  # see above
    with pytest.raises(DataError, match=r"s3://bucket/manifest.json: is not JSON"):
        open_dataset("s3://bucket")
