import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from blip.data.dataset import CAPTIONS, RECORDS, Shard, write_manifest, write_table
from blip.errors import BlipError
from blip.files import digest_file, digest_json, lock, write_json
from blip.integrations.tracking import describe_experiment, shipping
from blip.integrations.tracking.settings import TrackingSettings
from blip.integrations.tracking.shipping import pending, ship
from blip.stage import Job, run_stage
from blip.tracker import Journal

from .conftest import begin, curve, resume, runs_of

RUNS = Path("runs")
STAGE = RUNS / "pretrain-k1"
MANIFEST = {"code": {"commit": "abc123", "changes": "d1"}, "lock": "l1"}


def test_a_stage_arrives_whole(settings: TrackingSettings, client: Any) -> None:
    describe_experiment(RUNS, "demo-1a2b3c4d", {"seed": 7, "capfilt": {"threshold": 0.5}})
    journal = begin(STAGE, manifest=MANIFEST)
    for step in range(3):
        journal.metrics({"train/loss": 1.0 / (step + 1), "optim/lr": 0.1}, step)
    journal.metrics({"results/web/retrieval/tr_r1": 25.0})
    journal.end("FINISHED")

    report = ship(RUNS, settings, last=True)

    assert (report.points, report.waiting, report.problem) == (7, (), "")
    [run] = runs_of(client)
    assert curve(client, run, "train/loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    said = [json.loads(line) for line in (STAGE / "journal.jsonl").read_text().splitlines()]
    history = client.get_metric_history(run.info.run_id, "optim/lr")
    assert [p.timestamp for p in history] == [int(e["time"] * 1000) for e in said[1:4]]
    assert run.info.run_name == "pretrain-web"
    assert run.info.status == "FINISHED"
    assert run.info.end_time == int(said[-1]["time"] * 1000)
    assert run.data.params == {
        "steps": "3",
        "optimizer.lr": "0.1",
        "optimizer.betas": "[0.9, 0.999]",
    }
    assert run.data.tags["blip.stage"] == "pretrain"
    assert run.data.tags["blip.key"] == "pretrain-k1"
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    assert run.data.tags["blip.dirty"] == "true"
    assert run.data.tags["blip.changes"] == "d1"
    assert run.data.tags["blip.lock"] == "l1"
    assert run.data.tags["blip.manifest"] == digest_json(MANIFEST)

    [experiment] = runs_of(client, "experiment")
    assert run.data.tags["mlflow.parentRunId"] == experiment.info.run_id
    assert experiment.info.run_name == "demo-1a2b3c4d"
    assert experiment.info.status == "FINISHED"
    assert experiment.data.params == {"seed": "7", "capfilt.threshold": "0.5"}
    assert experiment.data.metrics == {"results/web/retrieval/tr_r1": 25.0}


def test_parts_belong_to_the_run_of_their_stage(settings: TrackingSettings, client: Any) -> None:
    parts = [Journal(STAGE / f"journal-{index}-of-2.jsonl") for index in range(2)]
    about = {"stage": "caption", "name": "caption-web", "key": "k1", "experiment": "e"}
    for index, part in enumerate(parts):
        part.start(**about, params={}, inputs={})
        part.metrics({"perf/images_per_second": 10.0 + index}, index)
    parts[0].end("FINISHED")
    ship(RUNS, settings)
    [run] = runs_of(client)
    assert run.info.status == "RUNNING"
    assert curve(client, run, "perf/images_per_second") == [(0, 10.0), (1, 11.0)]

    parts[1].end("FAILED")
    ship(RUNS, settings)
    assert [run.info.status for run in runs_of(client)] == ["FAILED"]

    again, whole = Journal(STAGE / "journal-1-of-2.jsonl"), Journal(STAGE / "journal.jsonl")
    for journal in (again, whole):
        journal.start(**about, params={}, inputs={})
    whole.end("FINISHED", "digest")
    again.end("KILLED")  # it came too late
    ship(RUNS, settings)
    [run] = runs_of(client)
    assert (run.info.status, run.data.tags["blip.output"]) == ("FINISHED", "digest")
    assert pending(RUNS, settings) == []


def test_only_what_is_new_is_carried(settings: TrackingSettings, client: Any) -> None:
    journal = begin(STAGE)
    journal.metrics({"train/loss": 3.0}, 0)
    assert ship(RUNS, settings).points == 1
    assert pending(RUNS, settings) == []
    assert ship(RUNS, settings).points == 0
    journal.metrics({"train/loss": 2.0}, 1)
    assert ship(RUNS, settings).points == 1
    [run] = runs_of(client)
    assert curve(client, run, "train/loss") == [(0, 3.0), (1, 2.0)]
    assert run.info.status == "RUNNING"


def test_a_torn_line_waits_for_its_end(settings: TrackingSettings, client: Any) -> None:
    begin(STAGE).metrics({"train/loss": 3.0}, 0)
    line = '{"event": "metrics", "time": 1.5, "step": 1, "values": {"train/loss": 2.0}}\n'
    with (STAGE / "journal.jsonl").open("a") as file:
        file.write(line[:40])
    assert ship(RUNS, settings).points == 1
    assert pending(RUNS, settings) == []
    with (STAGE / "journal.jsonl").open("a") as file:
        file.write(line[40:])
    assert ship(RUNS, settings).points == 1
    assert curve(client, runs_of(client)[0], "train/loss") == [(0, 3.0), (1, 2.0)]


@pytest.mark.parametrize("ending", [None, "KILLED", "FAILED"])
def test_a_resumed_stage_continues_its_run(
    settings: TrackingSettings, client: Any, ending: Any
) -> None:
    journal = begin(STAGE)
    journal.metrics({"train/loss": 3.0}, 0)
    if ending:
        journal.end(ending)
    ship(RUNS, settings)
    assert runs_of(client)[0].info.status == (ending or "RUNNING")
    journal = begin(STAGE, manifest=MANIFEST)
    journal.metrics({"train/loss": 2.0}, 1)
    ship(RUNS, settings)
    assert runs_of(client)[0].info.status == "RUNNING"
    assert runs_of(client)[0].data.tags["mlflow.source.git.commit"] == "abc123"
    journal.end("FINISHED")
    ship(RUNS, settings)
    [run] = runs_of(client)
    assert run.info.status == "FINISHED"
    assert curve(client, run, "train/loss") == [(0, 3.0), (1, 2.0)]


def test_a_stage_done_again_gets_a_run_of_its_own(settings: TrackingSettings, client: Any) -> None:
    for value in (3.0, 4.0):
        journal = begin(STAGE)
        journal.metrics({"train/loss": value}, 0)
        journal.end("FINISHED")
    ship(RUNS, settings)
    runs = runs_of(client)
    assert [curve(client, run, "train/loss") for run in runs] == [[(0, 3.0)], [(0, 4.0)]]
    assert len(runs_of(client, "experiment")) == 1


@pytest.mark.parametrize("lost_writes", [1, 2, 3])
def test_a_shipper_killed_anywhere_doubles_nothing(
    settings: TrackingSettings,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    lost_writes: int,
) -> None:
    journal = begin(STAGE)
    for step in range(1500):
        journal.metrics({"train/loss": float(step)}, step)
    journal.metrics({"results/a": 1.0})
    journal.end("FINISHED")
    writes = []

    def killed(path: Path, value: Any) -> None:
        writes.append(path)
        if len(writes) == lost_writes:  # after MLflow has it, before we know
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(shipping, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            ship(RUNS, settings)
    ship(RUNS, settings)
    [run] = runs_of(client)
    assert curve(client, run, "train/loss") == [(step, float(step)) for step in range(1500)]
    [experiment] = runs_of(client, "experiment")
    assert curve(client, experiment, "results/a") == [(0, 1.0)]


def test_losing_the_offsets_doubles_nothing(settings: TrackingSettings, client: Any) -> None:
    journal = begin(STAGE)
    journal.metrics({"train/loss": 3.0}, 0)
    journal.end("FINISHED")
    ship(RUNS, settings)
    (STAGE / "shipped.json").unlink()
    ship(RUNS, settings)
    [run] = runs_of(client)
    assert curve(client, run, "train/loss") == [(0, 3.0)]
    assert run.info.status == "FINISHED"


def test_a_server_that_is_away_loses_nothing(
    settings: TrackingSettings, client: Any, unused_address: str
) -> None:
    away = settings.model_copy(update={"tracking_uri": unused_address, "artifact_location": None})
    for name in ("pretrain-k1", "finetune-k2"):
        journal = begin(RUNS / name)
        journal.metrics({"train/loss": 3.0}, 0)
        journal.end("FINISHED")
    report = ship(RUNS, away)
    assert report.points == 0
    assert report.waiting == ("finetune-k2", "pretrain-k1")
    assert unused_address in report.problem
    assert "MLFLOW_TRACKING_URI" in report.problem
    assert ship(RUNS, settings).points == 2
    assert len(runs_of(client)) == 2


def test_a_store_that_is_no_database_is_a_line_in_the_report(settings: TrackingSettings) -> None:
    Path("mlflow.db").write_bytes(b"no database" * 100)
    begin(STAGE).metrics({"train/loss": 3.0}, 0)
    report = ship(RUNS, settings)
    assert report.waiting == ("pretrain-k1",)
    assert "mlflow.db" in report.problem


def test_what_the_server_refuses_does_not_hold_up_the_rest(
    settings: TrackingSettings, client: Any
) -> None:
    begin(RUNS / "a-k1").metrics({"not*allowed": 3.0}, 0)
    begin(RUNS / "b-k2").metrics({"train/loss": 3.0}, 0)
    report = ship(RUNS, settings)
    assert report.points == 1
    assert report.waiting == ("a-k1",)
    assert "not*allowed" in report.problem


def test_a_run_that_was_deleted_begins_anew(settings: TrackingSettings, client: Any) -> None:
    journal = begin(STAGE)
    journal.metrics({"train/loss": 3.0}, 0)
    ship(RUNS, settings)
    [deleted] = runs_of(client)
    client.delete_run(deleted.info.run_id)
    journal.metrics({"train/loss": 2.0}, 1)
    report = ship(RUNS, settings)
    assert report.problem == ""
    [run] = runs_of(client)
    assert run.info.run_id != deleted.info.run_id
    assert curve(client, run, "train/loss") == [(0, 3.0), (1, 2.0)]


def test_another_store_gets_everything(
    settings: TrackingSettings, client: Any, store_template: Path
) -> None:
    journal = begin(STAGE)
    journal.metrics({"train/loss": 3.0}, 0)
    ship(RUNS, settings)
    other = settings.model_copy(update={"experiment": "other"})
    assert ship(RUNS, other).points == 1
    found = client.get_experiment_by_name("other")
    assert len(client.search_runs([found.experiment_id])) == 2


def test_the_experiment_runs_as_long_as_a_stage(settings: TrackingSettings, client: Any) -> None:
    first, second = begin(RUNS / "a-k1"), begin(RUNS / "b-k2")
    first.end("FINISHED")
    ship(RUNS, settings, last=True)
    assert runs_of(client, "experiment")[0].info.status == "RUNNING"
    second.end("FAILED")
    ship(RUNS, settings, last=True)
    assert runs_of(client, "experiment")[0].info.status == "FAILED"
    again = begin(RUNS / "b-k2")
    ship(RUNS, settings)
    assert runs_of(client, "experiment")[0].info.status == "RUNNING"
    again.end("FINISHED")
    ship(RUNS, settings, last=True)
    assert runs_of(client, "experiment")[0].info.status == "FINISHED"


def test_one_shipper_at_a_time(settings: TrackingSettings) -> None:
    begin(STAGE)
    with (
        lock(RUNS / "locks" / "shipping", "another"),
        pytest.raises(BlipError, match="already running"),
    ):
        ship(RUNS, settings)


def test_artifacts_arrive_even_if_their_folder_was_renamed(
    settings: TrackingSettings, client: Any
) -> None:
    journal = begin(STAGE)
    partial = Path("out/.report.partial")
    partial.mkdir(parents=True)
    (partial / "page.html").write_text("<p>hello")
    journal.artifact(partial / "page.html", "results")
    partial.rename("out/report")
    journal.artifact(Path("out/report/nothing.html"))
    assert ship(RUNS, settings).problem == ""
    for kind in ("stage", "experiment"):
        [run] = runs_of(client, kind)
        path = client.download_artifacts(run.info.run_id, "results/page.html", ".")
        assert Path(path).read_text() == "<p>hello"


def dataset_version(path: Path) -> str:
    """Write a dataset version of two images with three captions; give its digest."""
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    records, captions = [], []
    path.mkdir(parents=True)
    with tarfile.open(path / "images.tar", "w") as tar:
        for name, colour in colours.items():
            file = io.BytesIO()
            Image.new("RGB", (300, 200), colour).save(file, "PNG")
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(file.getvalue())
            offset = tar.offset + 512
            tar.addfile(info, io.BytesIO(file.getvalue()))
            records.append([name, f"{name}.png", 300, 200, "png", offset, info.size])
            for origin in ("web", "synthetic"):
                text = f"a {name} picture, {origin}"
                judged = [None, 0.75, 0.5, True, "ok"]
                captions.append([name + origin, name, text, origin, None, None, *judged])
    tables = {}
    for name, schema, rows in (("records", RECORDS, records), ("captions", CAPTIONS, captions)):
        table = pa.Table.from_pylist(
            [dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema
        )
        tables[name] = write_table(path / f"{name}.parquet", table)
    digest = digest_file(path / "images.tar")
    places = [path / n for n in ("images.tar", "records.parquet", "captions.parquet")]
    shard = Shard(*places, digest, tables["records"], tables["captions"], 2, 4)
    return write_manifest(path, [shard], {"format": "test"}, {"images": 2})


def test_a_dataset_version_is_logged_as_a_table_with_images(
    settings: TrackingSettings, client: Any
) -> None:
    journal = begin(STAGE)
    dataset_version(Path("datasets/web"))
    journal.artifact(Path("datasets/web"), "captions")
    for _ in range(2):  # a table that is carried twice is the same table
        assert ship(RUNS, settings).problem == ""
        (STAGE / "shipped.json").unlink()
    [run] = runs_of(client)
    table = client.load_table(run.info.experiment_id, "captions/captions.json", [run.info.run_id])
    assert list(table["text"]) == [
        f"a {name} picture, {origin}" for name in ("red", "blue") for origin in ("web", "synthetic")
    ]
    assert list(table["match probability"]) == [0.75] * 4
    thumbnail = client.download_artifacts(run.info.run_id, table["image"][0]["filepath"], ".")
    with Image.open(thumbnail) as image:
        assert image.size == (256, 171)
        red, green, blue = image.getpixel((100, 100))
        assert red > 240
        assert max(green, blue) < 15


def test_artifacts_that_cannot_be_read_hold_nothing_up(
    settings: TrackingSettings, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    journal = begin(STAGE)
    dataset_version(Path("datasets/web"))
    Path("datasets/web/images.tar").unlink()  # as where the parent of a version was removed
    journal.artifact(Path("datasets/web"), "captions")
    Path("per_example.parquet").write_bytes(b"PAR1")
    journal.artifact(Path("per_example.parquet"))
    journal.metrics({"train/loss": 0.5}, 1)
    journal.end("FINISHED")
    assert ship(RUNS, settings).problem == ""
    assert not pending(RUNS, settings)
    [run] = runs_of(client)
    assert run.data.metrics["train/loss"] == 0.5
    assert "images.tar: cannot be read" in caplog.text
    assert "per_example.parquet: cannot be read as Parquet" in caplog.text


def test_a_real_stage_names_its_datasets(settings: TrackingSettings, client: Any) -> None:
    job = Job("ingest", Path("datasets/web"), {}, {"shard_size": 2})
    with run_stage(job) as stage:
        assert stage
        stage.out.rmdir()
        version = dataset_version(stage.out)
    inputs = {"data": (Path("datasets/web"),), "tokenizer": (Path("mlflow.yaml"),)}
    job = Job("pretrain", Path("models/web"), inputs, {"steps": 1}, experiment="x")
    with run_stage(job) as stage:
        assert stage
        stage.journal.metrics({"train/loss": 1.0}, 1)
    assert ship(RUNS, settings, last=True).problem == ""
    run = next(r for r in runs_of(client) if r.data.tags["blip.stage"] == "pretrain")
    [used] = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("web", version[:32])
    assert json.loads(used.dataset.source)["digest"] == version
    assert [(t.key, t.value) for t in used.tags] == [("mlflow.data.context", "pretrain")]
    assert run.data.tags["blip.input.tokenizer"].startswith("mlflow.yaml@")
    assert "perf/seconds" in run.data.metrics


def test_a_changed_dataset_is_not_taken_for_the_one_that_was_read(
    settings: TrackingSettings, client: Any
) -> None:
    dataset_version(Path("datasets/web"))
    write_json(Path("datasets/web/stage.json"), {"output": digest_json("newer")})
    begin(STAGE, inputs={"data": [["datasets/web", digest_json("older")]]})
    ship(RUNS, settings)
    [run] = runs_of(client)
    assert run.inputs.dataset_inputs == []
    assert run.data.tags["blip.input.data"] == f"datasets/web@{digest_json('older')[:12]}"


def test_what_was_seen_of_the_process_is_told_in_order(
    settings: TrackingSettings, client: Any
) -> None:
    """Samples belong to the run that was under way when they were taken."""
    system = Journal(STAGE / "system.jsonl")
    for value in (1.0, 2.0):
        journal = begin(STAGE)
        system.metrics({"system/memory_gib": value}, step=5)
        journal.end("FINISHED")
    ship(RUNS, settings)
    curves = [curve(client, run, "system/memory_gib") for run in runs_of(client)]
    assert curves == [[(5, 1.0)], [(5, 2.0)]]


def test_shippers_at_once_carry_everything_once(settings: TrackingSettings, client: Any) -> None:
    for stage in range(3):
        journal = begin(RUNS / f"pretrain-k{stage}")
        for step in range(50):
            journal.metrics({"train/loss": float(step)}, step)
        journal.end("FINISHED")
    code = (
        "import time; from pathlib import Path; from blip.errors import BlipError\n"
        "from blip.integrations.tracking.settings import load_settings\n"
        "from blip.integrations.tracking.shipping import ship, pending\n"
        "settings = load_settings()\n"
        "while pending(Path('runs'), settings):\n"
        "    try: ship(Path('runs'), settings)\n"
        "    except BlipError: time.sleep(0.05)\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [other.wait(120) for other in others] == [0, 0]
    runs = runs_of(client)
    assert len(runs) == 3
    assert len(runs_of(client, "experiment")) == 1
    for run in runs:
        assert curve(client, run, "train/loss") == [(step, float(step)) for step in range(50)]


def test_a_second_start_in_one_journal_is_the_same_stage(
    settings: TrackingSettings, client: Any
) -> None:
    journal = begin(STAGE)
    resume(journal, STAGE)
    ship(RUNS, settings)
    assert len(runs_of(client)) == 1
