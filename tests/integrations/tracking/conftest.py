"""A real MLflow store for each test, copied from one whose tables were made once."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blip.integrations.tracking.server import MlflowServer
from blip.integrations.tracking.settings import TrackingSettings, load_settings, quiet_mlflow
from blip.tracker import Journal
from tests.ports import free_port

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with MLflow's tables: making them takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(ROOT / "mlflow.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        settings = load_settings(folder / "mlflow.yaml")
    MlflowServer(settings.model_copy(update={"experiment": "none"}))
    return folder / "mlflow.db"


@pytest.fixture
def settings(
    store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrackingSettings:
    """The project's settings, in the current folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("BLIP_TRACKING", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copy(ROOT / "mlflow.yaml", tmp_path)
    shutil.copy(store_template, tmp_path / "mlflow.db")
    return load_settings()


@pytest.fixture
def client(settings: TrackingSettings) -> Any:
    """MLflow's own client, to see what arrived."""
    quiet_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(settings.tracking_uri)


def begin(folder: Path, name: str = "pretrain-web", **other: Any) -> Journal:
    """Write the start of a stage's journal, as `run_stage` does."""
    journal = Journal(folder / "journal.jsonl")
    resume(journal, folder, name, **other)
    return journal


def resume(journal: Journal, folder: Path, name: str = "pretrain-web", **other: Any) -> None:
    """Write another start."""
    verb = name.partition("-")[0]
    start = {"stage": verb, "name": name, "key": folder.name, "experiment": "demo-1a2b3c4d"}
    start |= {"params": {"steps": 3, "optimizer": {"lr": 0.1, "betas": [0.9, 0.999]}}, "inputs": {}}
    journal.start(**{**start, **other})


def runs_of(client: Any, kind: str = "stage") -> list[Any]:
    """List the runs in the store, the oldest first."""
    experiment = client.get_experiment_by_name("blip")
    if experiment is None:
        return []
    condition = f"tags.`blip.kind` = '{kind}'"
    found = client.search_runs([experiment.experiment_id], condition)
    return sorted(found, key=lambda run: float(run.data.tags.get("blip.begun", 0)))


def curve(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    """Give steps and values of a metric, every point that is stored."""
    points = client.get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in points)


@pytest.fixture
def unused_address() -> str:
    """An address on this machine where nothing answers."""
    return f"http://127.0.0.1:{free_port()}"


def wait_until(true: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


class Server:
    """A tracking server in a process of its own, on a port that stays the same."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", port]
        command += ["--backend-store-uri", f"sqlite:///{Path.cwd()}/mlflow.db"]
        command += ["--artifacts-destination", str(Path.cwd() / "served")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI")
        with Path("server.log").open("ab") as words:
            self.process = subprocess.Popen(
                command, env=environment, stdout=words, stderr=words, start_new_session=True
            )

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(
    settings: TrackingSettings, unused_address: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unused_address)
    server = Server(unused_address)
    yield server
    server.kill()
