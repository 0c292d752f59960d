"""What fills the catalogue: stage outputs read from disk, as often as one likes, each part once."""

import logging
from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Engine, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from blip.data.dataset import MANIFEST, Dataset, Shard, open_dataset
from blip.errors import DataError
from blip.files import digest_file, read_json
from blip.integrations.catalog.database import reading, writing
from blip.integrations.catalog.tables import (
    Caption,
    CaptionShard,
    Entry,
    Image,
    ImageShard,
    Model,
    Record,
    Run,
    RunInput,
    Table,
    Version,
    VersionShard,
)
from blip.stage import RECORD, input_digest

log = logging.getLogger(__name__)

OUTPUTS = (
    "datasets",
    "tokenizer",
    "models",
    "results",
)  # folders of an experiment that hold stage outputs
TRAINING = ("pretrain", "finetune")  # verbs that write a model
ROWS = 10_000  # sent to the database at once


def add(engine: Engine, path: Path) -> None:
    """Enter a stage's output: its run, and the dataset version or model that it is.

    What is there already is left alone, so this may be repeated, and run by several processes at
    once. A shard is entered in one transaction, a version only after all its shards: a killed call
    leaves nothing half said.

    Args:
        engine: An open catalogue.
        path: The output directory of a stage, or a dataset version made without one.

    Raises:
        DataError: There is no stage output, or a file of it is missing, malformed or not what the
            manifest says.
        IntegrationError: The database is away or refuses.
    """
    has_manifest, has_record = (path / MANIFEST).is_file(), (path / RECORD).is_file()
    if not has_manifest and not has_record:
        raise DataError(f"{path}: neither {RECORD} nor {MANIFEST} there: not the output of a stage")
    if has_manifest:
        _add_version(engine, path, open_dataset(path))
    if has_record:
        _add_run(engine, path, _read_record(path))


def rebuild(engine: Engine, root: Path) -> int:
    """Empty the catalogue and enter every stage output of an experiment anew; give their number.

    Args:
        engine: An open catalogue.
        root: The experiment's folder, with datasets/, models/, results/ and tokenizer/.

    Raises:
        DataError: A file of an output is missing, malformed or not what its manifest says.
        IntegrationError: The database is away or refuses.
    """
    paths = stage_outputs(root)
    with writing(engine) as connection:
        for table in reversed(Table.metadata.sorted_tables):
            connection.execute(table.delete())
    for path in paths:
        add(engine, path)
    return len(paths)


def stage_outputs(root: Path) -> list[Path]:
    """Find the stage outputs of an experiment, each after those it was made from."""
    found = {
        file.parent
        for folder in OUTPUTS
        for name in (RECORD, MANIFEST)
        for file in (root / folder).rglob(name)
        if not any(part.startswith(".") for part in file.relative_to(root).parts)  # half written
    }
    outputs = {path: input_digest(path) for path in sorted(found)}
    makers: dict[str, list[Path]] = {}
    for path, digest in outputs.items():
        makers.setdefault(digest, []).append(path)
    order = TopologicalSorter[Path]()
    for path, digest in outputs.items():
        record = _read_record(path) if (path / RECORD).is_file() else {"inputs": {}}
        read = {d for digests in record["inputs"].values() for d in digests} - {digest}
        order.add(path, *(maker for d in sorted(read) for maker in makers.get(d, [])))
    return list(order.static_order())


def count_rows(engine: Engine) -> dict[str, int]:
    """Give the number of rows of each table, by its name.

    Raises:
        IntegrationError: The database is away or refuses.
    """
    with reading(engine) as session:
        return {
            table.name: session.scalar(select(func.count()).select_from(table)) or 0
            for table in sorted(Table.metadata.tables.values(), key=lambda table: table.name)
        }


def _add_version(engine: Engine, path: Path, dataset: Dataset) -> None:
    shards = []
    for shard in dataset.shards:
        shards.append((_add_images(engine, shard), _add_captions(engine, shard)))
    row = {
        "output": input_digest(path),
        "digest": dataset.digest,
        "name": dataset.name,
        "source": dataset.source,
        "counts": read_json(path / MANIFEST)["counts"],
        "num_images": dataset.num_images,
        "num_captions": dataset.num_captions,
    }
    with writing(engine) as connection:
        version, new = _identify(connection, Version, row, "output")
        if new and shards:
            connection.execute(
                insert(VersionShard),
                [
                    {
                        "version_id": version,
                        "position": position,
                        "image_shard_id": images,
                        "caption_shard_id": captions,
                    }
                    for position, (images, captions) in enumerate(shards)
                ],
            )
            log.debug("%s: version %s entered", path, dataset.digest[:12])


def _add_images(engine: Engine, shard: Shard) -> int:
    """Enter a shard's images unless they are there; give its id.

    Rows go in in the order of their keys: processes that enter the same rows at once then wait for
    each other, and never in a circle.
    """
    known = _find(engine, ImageShard, shard.records_digest)
    if known is not None:
        return known
    _check(shard.records, shard.records_digest)
    table = shard.read_records()
    row = {
        "digest": shard.records_digest,
        "images_digest": shard.images_digest,
        "num_images": shard.num_images,
    }
    with writing(engine) as connection:
        identity, new = _identify(connection, ImageShard, row, "digest")
        if new:
            images = table.select(["key", "width", "height", "extension", "size"])
            _insert(connection, Image, images.sort_by("key"))
            _insert(connection, Record, _placed(table.select(["key", "source"]), identity))
    return identity


def _add_captions(engine: Engine, shard: Shard) -> int:
    """Enter a caption table unless it is there; give its id."""
    known = _find(engine, CaptionShard, shard.captions_digest)
    if known is not None:
        return known
    _check(shard.captions, shard.captions_digest)
    table = shard.read_captions()
    captions = table.select(["caption_id", "key", "text", "origin", "generator", "decoding"])
    entries = table.select(["caption_id", "filter", "itm_score", "itc_score", "kept", "reason"])
    row = {"digest": shard.captions_digest, "num_captions": shard.num_captions}
    with writing(engine) as connection:
        identity, new = _identify(connection, CaptionShard, row, "digest")
        if new:
            _insert(connection, Caption, captions.sort_by("caption_id"))
            _insert(connection, Entry, _placed(entries, identity))
    return identity


def _add_run(engine: Engine, path: Path, record: Mapping[str, Any]) -> None:
    verb, inputs, output = record["stage"], record["inputs"], record["output"]
    run = {
        "key": record["key"],
        "verb": verb,
        "name": f"{verb}-{path.name}",
        "config": record["config"],
        "output": output,
    }
    with writing(engine) as connection:
        identity, new = _identify(connection, Run, run, "key", "output")
        rows = [
            {"run_id": identity, "role": role, "position": position, "digest": digest}
            for role, digests in inputs.items()
            for position, digest in enumerate(digests)
        ]
        if new and rows:
            connection.execute(insert(RunInput), rows)
        if verb in TRAINING:
            model = {
                "digest": output,
                "name": path.name,
                "task": record["config"].get("task", verb),
                "parent": next(iter(inputs.get("model", [])), None),
            }
            _identify(connection, Model, model, "digest")


def _identify(
    connection: Connection, table: type[Table], row: Mapping[str, Any], *names: str
) -> tuple[int, bool]:
    """Give the id of the row that these columns name, and whether it is new."""
    columns = table.__table__.c
    statement = _insert_missing(connection, table).values(row).returning(columns.id)
    identity = connection.scalar(statement)
    if identity is not None:
        return identity, True
    same = (columns[name] == row[name] for name in names)
    return connection.execute(select(columns.id).where(*same)).scalar_one(), False


def _find(engine: Engine, table: type[ImageShard] | type[CaptionShard], digest: str) -> int | None:
    with reading(engine) as session:
        return session.scalar(select(table.id).where(table.digest == digest))


def _insert(connection: Connection, table: type[Table], rows: pa.Table) -> None:
    statement = _insert_missing(connection, table)
    for batch in rows.to_batches(max_chunksize=ROWS):
        connection.execute(statement, batch.to_pylist())


def _insert_missing(
    connection: Connection, table: type[Table]
) -> sqlite.Insert | postgresql.Insert:
    """Begin an insertion that leaves rows alone that are there."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def _placed(rows: pa.Table, shard: int) -> pa.Table:
    """Add the columns that say where a row stands: its shard, and its number there."""
    places = pa.array(range(len(rows)), pa.int64())
    shards = pa.array([shard] * len(rows), pa.int64())
    return rows.append_column("shard_id", shards).append_column("row", places)


def _check(path: Path, digest: str) -> None:
    if digest_file(path) != digest:
        raise DataError(
            f"{path}: its content is not what the manifest says: it was changed or cut short; "
            "make or fetch it again"
        )


def _read_record(path: Path) -> dict[str, Any]:
    file = path / RECORD
    record = read_json(file)
    wanted: dict[str, Iterable[str] | type] = {
        "stage": str,
        "key": str,
        "inputs": dict,
        "config": dict,
        "output": str,
    }
    for name, kind in wanted.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):  # type: ignore[arg-type]
            raise DataError(f"{file}: not a stage's record: {name!r} is missing or wrong")
    return record
