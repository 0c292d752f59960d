"""A real follower beside real stages: killed, resumed, left behind, with a server that dies."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from blip.integrations.tracking import followed, log_file, start_follower, tracked
from blip.integrations.tracking.settings import TrackingSettings, load_settings, quiet_mlflow
from blip.integrations.tracking.shipping import pending
from blip.stage import Job, run_stage

from .conftest import Server, begin, curve, runs_of, wait_until

RUNS = Path("runs")

# Says a number every twentieth of a second, and is killed or ends: `python -c STAGE POINTS`.
STAGE = """
import sys, time
from pathlib import Path
from blip.integrations.tracking import tracked
from blip.stage import Job, run_stage
job = Job("pretrain", Path("models/web"), {}, {"steps": 3}, experiment="demo-1a2b3c4d")
with tracked(job, {"seed": 7}), run_stage(job) as stage:
    for step in range(int(sys.argv[1])):
        stage.journal.metrics({"train/loss": float(step)}, step)
        time.sleep(0.05)
    (stage.out / "done").touch()
"""


def run_status(client: Any) -> list[str]:
    return [run.info.status for run in runs_of(client)]


def test_a_killed_stage_is_seen_and_its_resumption_continues_the_run(
    settings: TrackingSettings, client: Any
) -> None:
    with subprocess.Popen([sys.executable, "-c", STAGE, "100000"]) as killed:
        try:
            wait_until(lambda: runs_of(client) and curve(client, runs_of(client)[0], "train/loss"))
            assert run_status(client) == ["RUNNING"]
        finally:
            killed.kill()
    wait_until(lambda: run_status(client) == ["KILLED"])
    wait_until(lambda: not pending(RUNS, settings))
    [run] = runs_of(client)
    assert run.data.metrics["system/memory_gib"] > 0.0
    before = curve(client, run, "train/loss")
    assert before == [(step, float(step)) for step in range(len(before))]

    subprocess.run([sys.executable, "-c", STAGE, "3"], check=True)
    wait_until(lambda: run_status(client) == ["FINISHED"])
    assert [r.info.status for r in runs_of(client, "experiment")] == ["FINISHED"]
    assert len(curve(client, runs_of(client)[0], "train/loss")) == len(before) + 3
    assert not Path("models/.web.partial").exists()


def test_nothing_to_do_starts_no_mlflow(settings: TrackingSettings) -> None:
    job = Job("select", Path("datasets/web"), {}, {})
    with run_stage(job):
        pass
    for shipped in (RUNS / "locks").glob("*"):
        assert shipped.read_text()
    before = pending(RUNS, settings)
    follower = start_follower(Path("other"), settings)
    started = time.monotonic()
    follower.stop(60.0)
    assert time.monotonic() - started < 60.0
    assert log_file(Path("other")).read_text() == ""
    assert pending(RUNS, settings) == before != []


@pytest.mark.parametrize("mode", ["journal", "off"])
def test_no_follower_where_another_follows(
    settings: TrackingSettings, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("BLIP_TRACKING", mode)
    job = Job("select", Path("datasets/web"), {}, {}, experiment="demo-1")
    with tracked(job, {"seed": 1}), run_stage(job):
        pass
    assert not log_file(RUNS).exists()
    assert len(pending(RUNS, settings)) == 1
    assert (RUNS / "experiments" / "demo-1.json").exists()


def test_no_follower_without_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with followed(RUNS):
        pass
    assert not RUNS.exists()


def test_an_error_of_the_stage_is_not_hidden(settings: TrackingSettings) -> None:
    def fail() -> None:
        with followed(RUNS):
            raise RuntimeError("the stage's own")

    with pytest.raises(RuntimeError, match="the stage's own"):
        fail()


def test_a_server_that_is_away_costs_the_stage_no_more_than_its_patience(
    settings: TrackingSettings,
    unused_address: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unused_address)
    job = Job("select", Path("datasets/web"), {}, {})
    with caplog.at_level("INFO", "blip"):
        with tracked(job, {}), run_stage(job) as stage:
            assert stage
            stage.journal.metrics({"train/loss": 1.0}, 1)
            ended = time.monotonic()
        waited = time.monotonic() - ended
    assert waited < 20.0  # measured: 3 s of patience; the rest is for a loaded machine
    assert "tracking.log" in caplog.text
    assert (Path("datasets/web/stage.json")).exists()
    assert len(pending(RUNS, load_settings())) == 1
    wait_until(lambda: "1 stages wait" in log_file(RUNS).read_text())


@pytest.mark.slow
def test_a_server_killed_in_the_middle_gets_every_point_later(server: Server) -> None:
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(server.address)

    def stored() -> int:
        try:
            return sum(len(curve(client, run, "train/loss")) for run in runs_of(client))
        except MlflowException:
            return -1

    server.start()
    with followed(RUNS):
        journal = begin(RUNS / "pretrain-k1")
        for step in range(400):
            journal.metrics({"train/loss": step / 7}, step)
        wait_until(lambda: stored() == 400)
        server.kill()
        for step in range(400, 800):  # training goes on
            journal.metrics({"train/loss": step / 7}, step)
        wait_until(lambda: "1 stages wait" in log_file(RUNS).read_text())
        server.start()
        wait_until(lambda: stored() == 800)
        Path("page.html").write_text("<p>hello")
        journal.artifact(Path("page.html"), "results")
        journal.end("FINISHED")
    wait_until(lambda: run_status(client) == ["FINISHED"])
    [run] = runs_of(client)
    assert curve(client, run, "train/loss") == [(step, step / 7) for step in range(800)]
    shutil.rmtree("runs/locks")
    assert Path(client.download_artifacts(run.info.run_id, "results/page.html", ".")).exists()
    assert list(Path("served").rglob("page.html"))
