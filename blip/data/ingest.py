"""Taking a collection in: every image and caption is checked once, here, and stored for good.

What breaks a rule goes to `quarantine.jsonl` with its reason, one line each:
`{"source", "what": "image" or "caption", "value", "reason"}`. Reasons of images: `unsafe_name`,
`missing`, `oversized`, `undecodable`, `tiny`, `duplicate`, `no_caption`; of captions: `empty`,
`control_characters`, `too_short`, `too_long`, `duplicate`.

An image is known by its bytes. A later record with the bytes of an earlier one is a duplicate as
a whole, its captions included: neighbouring records of one image were joined before, and what is
left are collections that hold an image under two names.

The records are cut into blocks of `ingest.shard_size`; what passes of each is a shard. Blocks are
done one by one, by one process or, in parts, by several (`blip.data.blocks`), and put together in
order: there the shards that hold an image of an earlier one are written anew without it.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from blip.config import Ingest, Source
from blip.data.blocks import (
    Fault,
    Verdict,
    read_block,
    split_blocks,
    stored_images,
    write_block,
    write_shard,
)
from blip.data.dataset import Shard, iterate_rows, write_manifest
from blip.data.image_store import ImageStore
from blip.data.sources import read_records
from blip.data.truth import TRUTH, Truth, write_truth
from blip.errors import DataError
from blip.files import write_json
from blip.progress import Progress
from blip.stage import Part, share
from blip.tracker import Tracker

QUARANTINE = "quarantine.jsonl"
EXAMPLES = 3  # in the message that stops a bad collection


def ingest(
    config: Ingest,
    name: str,
    out: Path,
    run_dir: Path,
    tracker: Tracker,
    part: Part | None = None,
) -> None:
    """Take one collection in as a dataset version.

    Args:
        config: The rules, and the collections by name.
        name: Which collection.
        out: Empty folder; receives `manifest.json`, `images/`, `records/`, `captions/`,
            `quarantine.jsonl`, `metrics.json`, and `truth.jsonl` where captions were mismatched.
        run_dir: Keeps the blocks that are finished.
        tracker: Told `perf/images_per_second`.
        part: Which blocks to finish, and no more; all without, and `out` is written.

    Raises:
        DataError: A file is missing or malformed, nothing passed, or more than the allowed share
            of images or captions did not.
    """
    source = config.sources[name]
    # A first pass over the annotations finds what is malformed before any image is touched.
    sizes = [len(block) for block in split_blocks(read_records(source), config.shard_size)]
    folders = [run_dir / f"shards/{number:06}" for number in range(len(sizes))]
    _finish(config, name, folders, sizes, tracker, part)
    if part:
        return
    truths: list[Truth] = []
    with (out / QUARANTINE).open("w") as file:
        quarantine = _Quarantine(file)
        shards = list(_put_together(folders, source, out, quarantine, truths))
    counts = {
        "images": sum(shard.num_images for shard in shards),
        "captions": sum(shard.num_captions for shard in shards),
    }
    quarantine.check(source, counts, config.max_quarantined)
    counts |= quarantine.counts()
    if source.mismatch:
        write_truth(out / TRUTH, truths)
    write_manifest(out, shards, _describe(source), counts)
    write_json(out / "metrics.json", {"ingest": counts})


def _finish(
    config: Ingest,
    name: str,
    folders: list[Path],
    sizes: list[int],
    tracker: Tracker,
    part: Part | None,
) -> None:
    """Do the blocks of a part, or all; what another run or part finished is not redone."""
    mine = share(len(folders), part)
    waiting = {number for number in mine if not folders[number].exists()}
    if not waiting:
        return
    source, started, done = config.sources[name], time.monotonic(), 0
    total = sum(sizes[number] for number in mine)
    left = sum(sizes[number] for number in waiting)
    progress = Progress(f"ingest {name}", total, "images", total - left)
    with ImageStore(Path(source.images)) as store:
        for number, records in enumerate(split_blocks(read_records(source), config.shard_size)):
            if number in waiting and not folders[number].exists():
                write_block(config, source, records, store, folders[number], progress)
                done += len(records)
    speed = done / max(time.monotonic() - started, 1e-9)
    tracker.metrics({"perf/images_per_second": speed}, part.index if part else 0)


def _put_together(
    folders: list[Path],
    source: Source,
    out: Path,
    quarantine: "_Quarantine",
    truths: list[Truth],
) -> Iterator[Shard]:
    """Give the shards of all blocks, in order, without the images that an earlier one holds."""
    seen: set[bytes] = set()  # a digest, with its place 100 bytes, outlives a block
    for folder in folders:
        block = read_block(folder)
        accepted = {v.key: v for v in _first_seen(block.verdicts, seen, quarantine)}
        if block.shard is None or not accepted:
            continue
        if len(accepted) == block.shard.num_images:
            shard = _take_over(block.shard, out)
        else:
            images = stored_images(block.shard, accepted.keys())
            rewritten = write_shard(images, source.origin, out)
            shard = replace(rewritten, collection=block.shard.collection)
        if source.mismatch:
            for row in iterate_rows(shard.read_captions()):
                verdict = accepted[row["key"]]
                truths.append(Truth(verdict.source, row["text"], verdict.kind))
        yield shard


def _first_seen(
    verdicts: list[Verdict], seen: set[bytes], quarantine: "_Quarantine"
) -> Iterator[Verdict]:
    """Give the records to take in, now that it is known what came before; the rest goes to quarantine."""
    for verdict in verdicts:
        key = bytes.fromhex(verdict.key or "")
        final = verdict.repeated() if key in seen else verdict
        for fault in final.faults:
            quarantine.add(final.source, fault)
        if final.accepted:
            seen.add(key)
            yield final


def _take_over(shard: Shard, out: Path) -> Shard:
    """Take the files of a block's shard into the output."""
    return replace(
        shard,
        images=_link(shard.images, out / "images"),
        records=_link(shard.records, out / "records"),
        captions=_link(shard.captions, out / "captions"),
    )


def _link(file: Path, folder: Path) -> Path:
    """Give a file a second name in a folder, or copy it where it cannot have one."""
    folder.mkdir(exist_ok=True)
    place = folder / file.name
    try:
        place.hardlink_to(file)
    except OSError:  # on another disk, or one that knows no such names
        shutil.copyfile(file, place)
    return place


class _Quarantine:
    """What was not taken in, and why."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._examples: list[str] = []

    def add(self, source: str, fault: Fault) -> None:
        """Write one line."""
        line = json.dumps({"source": source, **fault._asdict()})
        self._file.write(line + "\n")
        self._reasons[fault.what, fault.reason] += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append(line)

    def counts(self) -> dict[str, int]:
        """Give the numbers to report: of images, of captions, and by reason."""
        reasons = {f"{what}_{why}": count for (what, why), count in sorted(self._reasons.items())}
        return {
            "quarantined_images": self._total("image"),
            "quarantined_captions": self._total("caption"),
            **reasons,
        }

    def check(self, source: Source, taken: dict[str, int], max_share: float) -> None:
        """Hold the shares that were not taken in against the limit."""
        for what in ("image", "caption"):
            bad, good = self._total(what), taken[f"{what}s"]
            if good and bad <= max_share * (good + bad):
                continue
            counts = sorted(self._reasons.items())
            reasons = ", ".join(f"{why}: {count}" for (kind, why), count in counts if kind == what)
            raise DataError(
                f"{source.annotations}: {bad} of {good + bad} {what}s cannot be taken in "
                f"({reasons}), more than ingest.max_quarantined {max_share:g}: mend the "
                f"collection or raise the limit. Examples: {' '.join(self._examples)}"
            )

    def _total(self, what: str) -> int:
        return sum(count for (kind, _), count in self._reasons.items() if kind == what)


def _describe(source: Source) -> dict[str, Any]:
    """Say where a version came from, without the folders of this machine."""
    description = source.model_dump(mode="json")
    for role in ("annotations", "images", "split"):
        if description[role] is not None:
            description[role] = Path(description[role]).name
    return description
