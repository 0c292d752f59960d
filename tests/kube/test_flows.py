"""Flow runs whose stages are Jobs on a real cluster: cancelled, killed, and without their Prefect server."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.server import Api, Server, prefect, worker
from tests.kube.conftest import Kubectl, wait_until
from tests.kube.test_launcher import jobs, pods

pytestmark = [
    pytest.mark.kube,
    pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning"),  # pygtrie within DVC
]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("prefect"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def api(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setenv("PREFECT_API_URL", server.url)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    return Api(server.url)


class FlowRun:
    """A flow run of the project in the current directory, its stages as Jobs; ends with the test."""

    def __init__(self, name: str, log: Path) -> None:
        self._log = log
        command = [sys.executable, "-m", "flows", name, '{"launcher": "kubernetes", "slots": 2}']
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    def said(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        return self.process.wait(300)


@pytest.fixture
def start_flow(api: Api, tmp_path: Path) -> Iterator[Callable[[str], FlowRun]]:
    runs: list[FlowRun] = []

    def start(name: str) -> FlowRun:
        runs.append(FlowRun(name, tmp_path / f"flow-{len(runs)}"))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()
        sys.stdout.write(run.said())


def release(toy: Any, word: str) -> None:
    """Give the stages that wait for a word what they wait for."""
    with (toy.control / "log").open("a") as log:
        log.write(json.dumps({"name": word}) + "\n")


def began(toy: Any, *names: str) -> bool:
    return {entry["name"] for entry in toy.log()} >= set(names)


def test_a_killed_flow_run_joins_its_job(
    toy: Any, api: Api, kubectl: Kubectl, start_flow: Callable[[str], FlowRun]
) -> None:
    toy.order(prepare={"until": "GO"})
    killed = start_flow("bootstrap")
    wait_until(lambda: began(toy, "prepare"))
    uid = jobs(kubectl)["prepare"]["metadata"]["uid"]
    killed.kill()
    again = start_flow("bootstrap")
    wait_until(lambda: "of an earlier run goes on" in again.said())
    release(toy, "GO")
    assert again.end() == 0
    assert jobs(kubectl)["prepare"]["metadata"]["uid"] == uid
    assert toy.began() == ["prepare", "train_left", "select"]
    flow_run = api.last_flow_run()
    assert flow_run["state_type"] == "COMPLETED"
    assert {task["state_name"] for task in api.tasks(flow_run, 3).values()} == {"Completed"}


def test_jobs_decide_where_the_server_is_away(
    toy: Any, api: Api, server: Server, kubectl: Kubectl, start_flow: Callable[[str], FlowRun]
) -> None:
    toy.order(train_left={"until": "GO"}, train_right={"until": "GO", "exit": 2})
    flow = start_flow("experiment")
    wait_until(lambda: began(toy, "train_left", "train_right"))
    server.kill()
    try:
        release(toy, "GO")
        wait_until(lambda: flow.said().count("does not answer") == 2)
        time.sleep(10)  # longer than Prefect itself keeps what it has to tell
    finally:
        server.start()
    assert flow.end() == 2
    flow_run = api.last_flow_run()
    assert flow_run["state_type"] == "FAILED"
    assert "train@right ended with exit code 2" in flow_run["state"]["message"]
    states = {name: task["state_name"] for name, task in api.tasks(flow_run, 5).items()}
    assert states == {
        "prepare": "Completed",
        "train@left": "Completed",
        "train@right": "Failed",
        "select": "Completed",
        "finish": "Skipped",
    }


def test_a_flow_run_cancelled_in_prefect_deletes_its_job(
    toy: Any, api: Api, kubectl: Kubectl
) -> None:
    toy.order(prepare={"sleep": 600})
    (toy.root / "flows").symlink_to(ROOT / "flows")
    shutil.copy(ROOT / "prefect.yaml", toy.root)
    prefect("work-pool", "create", "blip", "--type", "process")
    prefect("deploy", "--name", "bootstrap")
    with worker():
        prefect("deployment", "run", "bootstrap/bootstrap", "--param", "launcher=kubernetes")
        wait_until(lambda: began(toy, "prepare"))
        assert (len(jobs(kubectl)), len(pods(kubectl))) == (1, 1)
        prefect("flow-run", "cancel", api.last_flow_run()["id"])
        wait_until(lambda: not jobs(kubectl) and not pods(kubectl))
        wait_until(lambda: api.last_flow_run()["state_type"] == "CANCELLED")
