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
from blip.tracker import Tracker

Row = dict[str, Any]

Write = Callable[[Dataset], Iterator[tuple[int, list[Row]]]]
"""Gives, batch by batch, how many images of a one-shard dataset are done and the rows they got."""


def finish_shards(
    dataset: Dataset, run_dir: Path, write: Write, name: str, tracker: Tracker
) -> Iterator[pa.Table]:
    """Give the caption table of every shard; what an earlier, killed run finished is not redone.

    Args:
        dataset: The version whose images get texts.
        run_dir: Keeps the tables of finished shards.
        write: Makes the rows of one shard.
        name: What is being done, for the progress.
        tracker: Told the speed.
    """
    parts = [run_dir / f"shards/{i:06}.parquet" for i in range(len(dataset.shards))]
    work = list(zip(dataset.shards, parts, strict=True))
    finished = sum(shard.num_images for shard, part in work if part.exists())
    progress = Progress(name, dataset.num_images, "images", finished)
    started, num_images, num_texts = time.monotonic(), 0, 0
    for shard, part in work:
        if part.exists():
            continue
        rows: list[Row] = []
        for done, more in write(replace(dataset, shards=(shard,))):
            rows += more
            progress.advance(done)
            num_images += done
        with atomic_file(part) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS), file)
        num_texts += len(rows)
    seconds = max(time.monotonic() - started, 1e-9)
    tracker.metrics({"perf/images_per_second": num_images / seconds})
    tracker.metrics({"perf/texts_per_second": num_texts / seconds})
    return (_read_part(part) for part in parts)


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


def _read_part(part: Path) -> pa.Table:
    try:
        return pq.read_table(part, schema=CAPTIONS)
    except (OSError, pa.ArrowException) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{part}: is damaged: {cause}: delete it to write it again") from None
