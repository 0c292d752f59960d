"""Dataset versions: a manifest over immutable image shards and the caption tables beside them.

    datasets/web/
      manifest.json                 what belongs together, with digests and counts
      images/<digest>.tar           WebDataset: <key>.<ext>, written once, never changed
      records/<digest>.parquet      one row an image: key, source, width, height, bytes, offset, extension
      captions/<digest>.parquet     one row a text, aligned by key
      quarantine.jsonl              what was not taken in, and why

A version that only changes captions (CapFilt) names the image shards and records of its parent by a relative path
and writes new caption tables. The digest of the contents is the version's name. A version may lie behind a URL; its
files are then read through local copies (`blip.data.storage`).
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip.data import storage
from blip.errors import DataError
from blip.files import digest_file, digest_json, read_json, write_json
from blip.remote import join, read_url

MANIFEST = "manifest.json"
FILES = {"images": ".tar", "records": ".parquet", "captions": ".parquet"}  # of a shard

RECORDS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # sha256 of the image's bytes
        pa.field("source", pa.string(), nullable=False),  # the name it had where it came from
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("extension", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # of the bytes within the tar
        pa.field("size", pa.int64(), nullable=False),  # in bytes
    ]
)

CAPTIONS = pa.schema(
    [
        pa.field("caption_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),  # of the image
        pa.field("text", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),  # web, human or synthetic
        pa.field("generator", pa.string()),  # digest of the checkpoint that wrote it
        pa.field("decoding", pa.string()),  # how it was written, as JSON
        pa.field("filter", pa.string()),  # digest of the checkpoint that judged it
        pa.field("itm_score", pa.float32()),  # match probability
        pa.field("itc_score", pa.float32()),  # cosine
        pa.field("kept", pa.bool_()),  # null: not judged yet
        pa.field("reason", pa.string()),  # why it was kept or dropped
    ]
)


@dataclass(frozen=True)
class Shard:
    """One image shard with its records and captions; paths are absolute or relative to the working directory.

    Attributes:
        texts: Number of texts that were not dropped, by origin; None in older manifests.
        collection: What part of its source it holds, where there are several.
        urls: Of images, records and captions, where the paths are those of local copies.
    """

    images: Path
    records: Path
    captions: Path
    images_digest: str
    records_digest: str
    captions_digest: str
    num_images: int
    num_captions: int
    texts: Mapping[str, int] | None = None
    collection: str | None = None
    urls: Mapping[str, str] | None = None

    def read_records(self) -> pa.Table:
        """Read the rows of its images (schema `RECORDS`)."""
        if self.urls:
            storage.fetch(self.urls["records"], self.records, self.records_digest)
        return _read_table(self.records, RECORDS)

    def read_captions(self) -> pa.Table:
        """Read the rows of its texts (schema `CAPTIONS`)."""
        if self.urls:
            storage.fetch(self.urls["captions"], self.captions, self.captions_digest)
        return _read_table(self.captions, CAPTIONS)

    def count_texts(self) -> Mapping[str, int]:
        """Give the number of texts that were not dropped, by origin."""
        if self.texts is not None:
            return self.texts
        if self.urls:
            return count_texts(self.read_captions())
        return count_texts(_read_table(self.captions, CAPTIONS, ["origin", "kept"]))


@dataclass(frozen=True)
class Dataset:
    """A dataset version on disk or behind a URL."""

    path: Path | str
    name: str
    digest: str
    source: dict[str, Any]
    shards: tuple[Shard, ...]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(shard.num_images for shard in self.shards)

    @property
    def num_captions(self) -> int:
        """Number of texts, kept or not."""
        return sum(shard.num_captions for shard in self.shards)

    def captions(self) -> pa.Table:
        """Read all texts of all shards."""
        return pa.concat_tables(
            [s.read_captions() for s in self.shards] or [CAPTIONS.empty_table()]
        )

    def records(self) -> pa.Table:
        """Read the records of all shards."""
        return pa.concat_tables([s.read_records() for s in self.shards] or [RECORDS.empty_table()])

    def verify(self) -> None:
        """Compare every file with the digest that the manifest gives.

        Raises:
            DataError: A file is missing or was changed; it is named.
        """
        for shard in self.shards:
            for path, digest in (
                (shard.images, shard.images_digest),
                (shard.records, shard.records_digest),
                (shard.captions, shard.captions_digest),
            ):
                if digest_file(path) != digest:
                    raise DataError(
                        f"{path}: its content is not what {self.path}/{MANIFEST} says: "
                        "it was changed or cut short; make or fetch it again"
                    )


def caption_id(
    key: str, origin: str, text: str, generator: str | None = None, decoding: str | None = None
) -> str:
    """Give the name of a text: equal only for the same words on the same image by the same writer."""
    return digest_json([key, origin, text, generator, decoding])[:24]


def count_texts(captions: pa.Table) -> dict[str, int]:
    """Count the texts of a caption table that were not dropped, by origin."""
    counts = pc.value_counts(kept_texts(captions)["origin"]).to_pylist()
    return {count["values"]: count["counts"] for count in counts}


def kept_texts(captions: pa.Table) -> pa.Table:
    """Give the rows of a caption table that were not dropped: kept, or not judged yet."""
    return captions.filter(pc.fill_null(captions["kept"], True))


def open_dataset(path: Path | str) -> Dataset:
    """Open a dataset version: a folder, or a URL of which only the manifest is read now.

    Raises:
        DataError: No manifest there, or it is malformed.
    """
    manifest = _read_manifest(path)
    name = str(path).rpartition("/")[2]
    try:
        shards = tuple(_shard(path, entry) for entry in manifest["shards"])
        return Dataset(path, name, manifest["digest"], manifest["source"], shards)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}/{MANIFEST}: not a dataset manifest: {error!r} is missing or wrong"
        ) from None


def _read_manifest(path: Path | str) -> Any:
    if isinstance(path, Path):
        if not path.exists():
            raise DataError(f"{path}: no such dataset version: run the stage that makes it first")
        return read_json(path / MANIFEST)
    url = join(path, MANIFEST)
    try:
        return json.loads(read_url(url))
    except ValueError as error:
        raise DataError(f"{url}: is not JSON: {error}") from None


def write_manifest(
    path: Path, shards: list[Shard], source: dict[str, Any], counts: dict[str, int]
) -> str:
    """Write the manifest of a version whose files are in place; give its digest.

    Args:
        path: The version's folder (it may still have a temporary name beside its final one).
        shards: Its shards, those of a parent included.
        source: Where it came from: format, files, parents' digests.
        counts: Numbers to report: images, captions, quarantined, by reason.
    """
    entries = [
        {
            "images": _relative(shard.images, path),
            "records": _relative(shard.records, path),
            "captions": _relative(shard.captions, path),
            "images_digest": shard.images_digest,
            "records_digest": shard.records_digest,
            "captions_digest": shard.captions_digest,
            "num_images": shard.num_images,
            "num_captions": shard.num_captions,
            **({} if shard.texts is None else {"texts": dict(shard.texts)}),
            **({"collection": shard.collection} if shard.collection else {}),
        }
        for shard in shards
    ]
    content = [{k: v for k, v in e.items() if "_" in k} for e in entries]  # what names the version
    digest = digest_json([content, source])
    write_json(
        path / MANIFEST,
        {"format": 1, "digest": digest, "source": source, "counts": counts, "shards": entries},
    )
    return digest


def write_table(path: Path, table: pa.Table) -> str:
    """Write a Parquet table in place and give the digest of its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
    return digest_file(path)


def iterate_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Give the rows of a table as dicts, batch by batch."""
    for batch in table.to_batches():
        yield from batch.to_pylist()


def canonical_json(value: Any) -> str:
    """Give one line of JSON with sorted keys, for table columns."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _relative(target: Path, folder: Path) -> str:
    return Path(os.path.relpath(target, folder)).as_posix()


def _shard(path: Path | str, entry: dict[str, Any]) -> Shard:
    rest = {name: value for name, value in entry.items() if name not in FILES}
    if isinstance(path, Path):
        images, records, captions = (path / entry[kind] for kind in FILES)
        return Shard(images, records, captions, **rest)
    images, records, captions = (
        storage.place(entry[f"{kind}_digest"], suffix) for kind, suffix in FILES.items()
    )
    urls = {kind: join(path, entry[kind]) for kind in FILES}
    return Shard(images, records, captions, **rest, urls=urls)


def _read_table(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    try:
        # Not `pq.read_table`, which imports pandas: a second at every start.
        with pq.ParquetFile(path) as file:
            found, table = file.schema_arrow.remove_metadata(), file.read(columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}"
        ) from None
    if found != schema:
        raise DataError(f"{path}: has columns {found.names}, expected {schema.names}")
    return table
