"""What the catalogue says is what the files say, however often and in whatever order added."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from blip.data.dataset import MANIFEST
from blip.errors import DataError, IntegrationError
from blip.files import read_json, write_json
from blip.integrations.catalog import add, count_rows, open_catalog, reading, rebuild, stage_outputs
from blip.integrations.catalog.tables import Entry, Model, Run, Table, Version
from blip.stage import RECORD, input_digest

IDS = {"shard_id", "image_shard_id", "caption_shard_id", "version_id", "run_id"}
ADD_ALL = """
import sys
import time
from pathlib import Path
from blip.integrations.catalog import add, open_catalog
url, *paths = sys.argv[1:]
engine = open_catalog(url)
for path in paths:
    add(engine, Path(path))
"""


def content(engine: Engine) -> dict[str, set[str]]:
    """Give all rows, with what an id stands for in place of the id, which depends on the order."""
    tables = Table.metadata.tables
    with engine.connect() as connection:
        rows = {
            n: [dict(r) for r in connection.execute(t.select()).mappings()]
            for n, t in tables.items()
        }
    names: dict[str, dict[int, str]] = {
        "image_shard_id": {r["id"]: r["digest"] for r in rows["image_shards"]},
        "caption_shard_id": {r["id"]: r["digest"] for r in rows["caption_shards"]},
        "version_id": {r["id"]: r["output"] for r in rows["versions"]},
        "run_id": {r["id"]: r["key"] for r in rows["runs"]},
    }
    shards = {"records": names["image_shard_id"], "entries": names["caption_shard_id"]}

    def natural(table: str, row: dict[str, Any]) -> str:
        known = {**names, "shard_id": shards.get(table, {})}
        values = {c: known[c][v] if c in IDS else v for c, v in row.items() if c != "id"}
        return repr(sorted(values.items()))

    return {table: {natural(table, row) for row in rows} for table, rows in rows.items()}


@pytest.fixture
def paths(experiment: Any) -> list[Path]:
    return stage_outputs(experiment.root)


def test_every_output_is_found_after_those_it_was_made_from(
    experiment: Any, paths: list[Path]
) -> None:
    names = [path.relative_to(experiment.root).as_posix() for path in paths]
    assert len(names) == len(set(names)) == 11
    for before, after in [
        ("datasets/web", "tokenizer"),
        ("tokenizer", "models/unfiltered"),
        ("models/unfiltered", "models/captioner"),
        ("models/captioner", "datasets/synthetic"),
        ("datasets/synthetic", "datasets/scored"),
        ("models/filter", "datasets/scored"),
        ("datasets/scored", "datasets/bootstrapped"),
        ("datasets/bootstrapped", "models/bootstrapped"),
    ]:
        assert names.index(before) < names.index(after)


def test_the_rows_are_those_of_the_files(
    engine: Engine, experiment: Any, paths: list[Path]
) -> None:
    for path in paths:
        add(engine, path)
    assert count_rows(engine) == {
        "caption_shards": 5,
        "captions": 6,  # two of the web, two of people, two of the captioner
        "entries": 2 + 2 + 2 + 4 + 4,
        "image_shards": 2,  # shared by all versions of the web
        "images": 3,
        "models": 4,
        "records": 3,
        "run_inputs": 1 + 1 + 2 + 2 + 3 + 2 + 2 + 2 + 3 + 1 + 3,
        "runs": 11,
        "version_shards": 5,
        "versions": 5,
    }
    with reading(engine) as session:
        version = session.scalars(select(Version).where(Version.name == "bootstrapped")).one()
        manifest = read_json(experiment.root / "datasets/bootstrapped" / MANIFEST)
        assert (version.digest, version.source) == (manifest["digest"], manifest["source"])
        assert version.output == experiment.digest("datasets/bootstrapped")
        run = session.scalars(select(Run).where(Run.output == version.output)).one()
        assert (run.verb, run.name, run.config) == (
            "select",
            "select-bootstrapped",
            {"threshold": 0.5},
        )
        captioner = session.scalars(select(Model).where(Model.name == "captioner")).one()
        assert captioner.task == "captioning"
        assert captioner.parent == experiment.digest("models/unfiltered")
        kept = select(Entry.itm_score).where(Entry.kept.is_(True)).order_by(Entry.itm_score)
        assert session.scalars(kept).all() == [0.75, 0.875]


def test_adding_again_changes_nothing(engine: Engine, paths: list[Path]) -> None:
    for path in paths:
        add(engine, path)
    before = content(engine)
    for path in reversed(paths):
        add(engine, path)
    assert content(engine) == before


def test_rebuilding_gives_what_adding_gave(
    engine: Engine, experiment: Any, paths: list[Path]
) -> None:
    for path in reversed(paths):
        add(engine, path)
    before = content(engine)
    assert rebuild(engine, experiment.root) == len(paths)
    assert content(engine) == before


@pytest.fixture(scope="module")
def rebuilt(experiment: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What the catalogue of the experiment must say."""
    engine = open_catalog(f"sqlite:///{tmp_path_factory.mktemp('rebuilt')}/catalog.db")
    rebuild(engine, experiment.root)
    return content(engine)


@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_the_order_does_not_matter(
    data: st.DataObject,
    experiment: Any,
    rebuilt: dict[str, set[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    paths = stage_outputs(experiment.root)
    twice = data.draw(st.lists(st.sampled_from(paths), max_size=4))
    engine = open_catalog(f"sqlite:///{tmp_path_factory.mktemp('order')}/catalog.db")
    for path in twice + data.draw(st.permutations(paths)):
        add(engine, path)
    assert content(engine) == rebuilt


def test_processes_may_add_at_once(
    url: str, paths: list[Path], rebuilt: dict[str, set[str]]
) -> None:
    """Two begin on a catalogue that is not there yet, in different orders."""
    orders = [paths, paths[::-1]]
    command = [sys.executable, "-c", ADD_ALL, url]
    workers = [
        subprocess.Popen([*command, *map(str, order)], stderr=subprocess.PIPE, text=True)
        for order in orders
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert content(open_catalog(url)) == rebuilt


def test_a_version_that_cannot_be_read_whole_is_absent(
    engine: Engine, experiment: Any, tmp_path: Path
) -> None:
    """Its shards before the damage stay: they are content, true of any version that has them."""
    web = shutil.copytree(experiment.root / "datasets/web", tmp_path / "datasets/web")
    captions = web / "captions/0.parquet"
    whole = captions.read_bytes()
    captions.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"0\.parquet: its content is not what the manifest says"):
        add(engine, web)
    counts = count_rows(engine)
    assert (counts["image_shards"], counts["caption_shards"], counts["versions"]) == (1, 0, 0)
    captions.write_bytes(whole)
    add(engine, web)
    assert count_rows(engine)["versions"] == 1


def test_a_failing_insertion_leaves_no_part_of_a_shard(
    engine: Engine, tmp_path: Path, files: Any
) -> None:
    """A NUL in a text is refused by PostgreSQL in the midst of a shard; SQLite takes it."""
    texts = [files.text("a", "fine", "web"), files.text("a", "not \0 fine", "web")]
    path = files.dataset(tmp_path / "web", [files.image("a")], texts)
    if engine.dialect.name == "sqlite":
        add(engine, path)
        assert count_rows(engine)["captions"] == 2
        return
    with pytest.raises(IntegrationError, match="NUL"):
        add(engine, path)
    counts = count_rows(engine)
    assert (counts["caption_shards"], counts["captions"], counts["versions"]) == (0, 0, 0)


def test_a_long_text_and_a_long_name_are_taken(engine: Engine, tmp_path: Path, files: Any) -> None:
    words = " ".join(map(str, range(5000)))
    images = [files.image("a", source=f"https://host/{words.replace(' ', '')}")]
    add(engine, files.dataset(tmp_path / "web", images, [files.text("a", words, "web")]))
    assert count_rows(engine)["captions"] == 1


def test_a_version_without_a_stage_is_named_by_its_content(
    engine: Engine, tmp_path: Path, files: Any
) -> None:
    path = files.dataset(tmp_path / "web", [files.image("a")], [files.text("a", "one", "web")])
    add(engine, path)
    with reading(engine) as session:
        version = session.scalars(select(Version)).one()
    assert (version.name, version.output) == ("web", input_digest(path))
    assert count_rows(engine)["runs"] == 0


def test_a_stage_forced_to_another_output_is_another_run(
    engine: Engine, experiment: Any, tmp_path: Path
) -> None:
    path = tmp_path / "models/captioner"
    shutil.copytree(experiment.root / "models/captioner", path)
    add(engine, path)
    write_json(path / RECORD, {**read_json(path / RECORD), "output": "f" * 64})
    add(engine, path)
    counts = count_rows(engine)
    assert (counts["runs"], counts["models"]) == (2, 2)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, r"neither stage\.json nor manifest\.json there"),
        ([], r"stage\.json: not a stage's record: 'stage' is missing or wrong"),
        (
            {"stage": "x", "key": "y", "inputs": [], "config": {}, "output": "z"},
            "'inputs' is missing",
        ),
    ],
)
def test_what_is_no_stage_output_is_refused(
    sqlite_url: str, tmp_path: Path, record: Any, message: str
) -> None:
    if record is not None:
        write_json(tmp_path / RECORD, record)
    with pytest.raises(DataError, match=message):
        add(open_catalog(sqlite_url), tmp_path)


@pytest.mark.slow
def test_a_hundred_thousand_texts_take_seconds(engine: Engine, tmp_path: Path, files: Any) -> None:
    """Measured alone on one core: 3.7 s on SQLite, 8.5 s on PostgreSQL, images and texts."""
    names = [f"{number}.png" for number in range(100_000)]
    texts = [files.text(name, f"the image {name}", "web") for name in names]
    path = files.dataset(tmp_path / "web", [files.image(name) for name in names], texts)
    started = time.process_time()
    add(engine, path)
    assert time.process_time() - started < 60
    assert count_rows(engine)["captions"] == 100_000
