"""New caption tables over the image shards of another version, written shard by shard."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip.data.dataset import (
    CAPTIONS,
    Dataset,
    Shard,
    count_texts,
    write_manifest,
    write_table,
)
from blip.errors import DataError
from blip.files import atomic_file, digest_file, write_json
from blip.progress import Progress
from blip.stage import Part, share
from blip.tracker import Tracker

Row = dict[str, Any]

Write = Callable[[Dataset], Iterator[tuple[int, list[Row]]]]
"""Gives, batch by batch, how many images of a one-shard dataset are done and the rows they got."""


def finish_shards(
    dataset: Dataset,
    run_dir: Path,
    write: Write,
    name: str,
    tracker: Tracker,
    part: Part | None = None,
) -> None:
    """Write the caption table of every shard; what another run or part finished is not redone.

    Args:
        dataset: The version whose images get texts.
        run_dir: Keeps the tables of finished shards.
        write: Makes the rows of one shard.
        name: What is being done, for the progress.
        tracker: Told the speed.
        part: Which shards; all without.
    """
    work = [(dataset.shards[i], _table_of(run_dir, i)) for i in share(len(dataset.shards), part)]
    finished = sum(shard.num_images for shard, table in work if table.exists())
    total = sum(shard.num_images for shard, _ in work)
    progress = Progress(name, total, "images", finished)
    started, num_images, num_texts = time.monotonic(), 0, 0
    for shard, table in work:
        if table.exists():
            continue
        rows: list[Row] = []
        for done, more in write(replace(dataset, shards=(shard,))):
            rows += more
            progress.advance(done)
            num_images += done
        with atomic_file(table) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS), file)
        num_texts += len(rows)
    if not num_images:
        return
    seconds, step = time.monotonic() - started, part.index if part else 0
    tracker.metrics({"perf/images_per_second": num_images / seconds}, step)
    tracker.metrics({"perf/texts_per_second": num_texts / seconds}, step)


def read_finished(dataset: Dataset, run_dir: Path) -> Iterator[pa.Table]:
    """Give the caption table of every shard, all of which are finished."""
    return (_read_table(_table_of(run_dir, i)) for i in range(len(dataset.shards)))


def publish(
    dataset: Dataset, tables: Iterable[pa.Table], out: Path, source: dict[str, Any]
) -> pa.Table:
    """Write a version of the same images with these caption tables, one a shard; give all texts."""
    shards, written = [], []
    for shard, table in zip(dataset.shards, tables, strict=True):
        file = out / "captions/new.parquet"
        digest = write_table(file, table)
        captions = file.rename(file.with_name(f"{digest}.parquet"))
        shards.append(
            replace(
                shard,
                captions=captions,
                captions_digest=digest,
                num_captions=len(table),
                texts=count_texts(table),
            )
        )
        written.append(table)
    texts = pa.concat_tables([*written, CAPTIONS.empty_table()])
    counts = {"images": dataset.num_images, "captions": len(texts)}
    write_manifest(out, shards, source, counts)
    return texts


def read_texts(shard: Shard) -> pa.Table:
    """Read the captions of a shard.

    Raises:
        DataError: They are not what the manifest says.
    """
    if digest_file(shard.captions) != shard.captions_digest:
        raise DataError(
            f"{shard.captions}: its content is not what the manifest says: it was changed or cut "
            "short; make or fetch it again"
        )
    return shard.read_captions()


def report(out: Path, stage: str, found: dict[str, float], tracker: Tracker) -> None:
    """Write `metrics.json` and tell the tracker."""
    write_json(out / "metrics.json", {stage: found})
    tracker.metrics({f"{stage}/{name}": value for name, value in found.items()})


def _table_of(run_dir: Path, number: int) -> Path:
    return run_dir / f"shards/{number:06}.parquet"


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=CAPTIONS)
    except (OSError, pa.ArrowException) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{path}: is damaged: {cause}: delete it to write it again") from None
