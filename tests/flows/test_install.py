"""What `python -m flows install` makes of a real Prefect server, and that it holds there."""

import contextvars
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from blip.integrations.cluster.settings import load_cluster
from blip.integrations.versioning import Node
from flows.install import (
    KUBERNETES,
    PROCESSES,
    ZOMBIES,
    crash_of_silent_runs,
    install,
    job_template,
)
from flows.turns import Turns, limit_name
from tests.flows.server import Server

ROOT = Path(__file__).parents[2]
GPU = ROOT / "k8s/overlays/gpu/jobs.yaml"


@pytest.fixture
def project(
    toy: Any, prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The toy project with the flows and what is installed from it, and a server for it."""
    (toy.root / "flows").symlink_to(ROOT / "flows")
    (toy.root / "k8s").symlink_to(ROOT / "k8s")
    shutil.copy(ROOT / "prefect.yaml", toy.root)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.delenv("BLIP_CLUSTER", raising=False)
    with temporary_settings({PREFECT_API_URL: prefect_api}):  # they are read at import
        yield toy


def test_the_job_template_has_the_defaults_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cluster = load_cluster(GPU).model_copy(update={"namespace": "team", "env": {"A": "b"}})
    variables = job_template(cluster)["variables"]["properties"]
    assert variables["image"]["default"] == cluster.image
    assert variables["namespace"]["default"] == "team"
    assert variables["env"]["default"]["A"] == "b"
    assert variables["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    secrets = [entry["secretRef"]["name"] for entry in variables["env_from"]["default"]]
    assert secrets == ["blip-s3", "blip-catalog"]


def test_silence_is_longer_than_some_heartbeats_and_ends_with_the_run() -> None:
    automation = crash_of_silent_runs(timedelta(seconds=150))
    assert "prefect.flow-run.heartbeat" in automation.trigger.after
    assert {
        "prefect.flow-run.Completed",
        "prefect.flow-run.AwaitingRetry",
    } < automation.trigger.expect


@pytest.mark.slow
def test_installing_again_changes_nothing_but_what_was_changed(project: Any) -> None:
    install()
    before = installed()
    install()
    assert installed() == before
    pools, limits, automations, deployments = before
    assert pools[PROCESSES][0] == "process"
    assert pools[KUBERNETES][0] == "kubernetes"
    assert (
        pools[KUBERNETES][1]["variables"]["properties"]["image"]["default"] == load_cluster().image
    )
    assert limits[limit_name(load_cluster())] == 1
    assert list(automations) == [ZOMBIES]
    assert {pool for _, pool, *_ in deployments} == {PROCESSES, KUBERNETES}
    assert all(
        parameters == ({"launcher": "kubernetes"} if pool == KUBERNETES else {})
        for _, pool, parameters, _ in deployments
    )
    assert sum(bool(schedules) for *_, schedules in deployments) == 2
    assert not any(active for *_, schedules in deployments for active in schedules)

    with get_client(sync_client=True) as client:
        client.create_automation(crash_of_silent_runs(timedelta(seconds=12)))  # a second one
        client.upsert_global_concurrency_limit_by_name(limit_name(load_cluster()), 7)
    install()
    assert installed() == before


@pytest.mark.slow
def test_a_flow_killed_with_its_worker_is_crashed(project: Any, prefect_api: str) -> None:
    project.order(prepare={"sleep": 600})
    install(silence=timedelta(seconds=40))  # heartbeats come every 30: the flow has time to begin
    environment = {**os.environ, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", PROCESSES],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        run = str(run_deployment("experiment/experiment", timeout=0, as_subflow=False).id)
        stage = wait_until(lambda: [e["pid"] for e in project.log() if e["name"] == "prepare"])[0]
        assert state(prefect_api, run) == "RUNNING"
    finally:
        worker.kill()
        worker.wait()
    os.kill(parent(stage), signal.SIGKILL)  # the flow, too: nothing is left to report
    wait_until(lambda: not Path(f"/proc/{stage}").exists())  # it ends with the flow
    wait_until(lambda: state(prefect_api, run) == "CRASHED")
    install()  # the usual patience again


@pytest.mark.slow
def test_trainings_take_turns_and_other_stages_do_not(project: Any) -> None:
    cluster = load_cluster(GPU)
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(limit_name(cluster), 1)
    launcher = Recorder()
    stopped = threading.Event()
    names = ["pretrain@human", "finetune@retrieval_human", "caption", "score"]
    threads = [
        threading.Thread(
            target=contextvars.copy_context().run,  # which server it is
            args=(Turns(launcher, cluster, stopped).launch, Node(name, "true"), name, print),
        )
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = {name: (began, ended) for name, began, ended in launcher.spans}
    assert set(spans) == set(names)
    first, second = sorted([spans["pretrain@human"], spans["finetune@retrieval_human"]])
    assert second[0] >= first[1]
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(limit_name(cluster))
    assert limit.active_slots == 0


@pytest.mark.slow
def test_a_turn_outlives_its_server(project: Any, tmp_path: Path) -> None:
    home = tmp_path / "server"
    home.mkdir()
    server = Server(home)
    server.start()
    try:
        cluster = load_cluster(GPU)
        said: list[str] = []

        class Restart(Recorder):
            """Takes its server away, which comes back when the stage has ended."""

            def launch(self, node: Node, key: str, say: Any) -> None:
                server.kill()
                threading.Timer(3, server.start).start()

        with temporary_settings({PREFECT_API_URL: server.url}):
            with get_client(sync_client=True) as client:
                client.upsert_global_concurrency_limit_by_name(limit_name(cluster), 1)
            turns = Turns(Restart(), cluster, threading.Event())
            turns.launch(Node("pretrain@human", "true"), "key", said.append)
        assert said == ["the Prefect server does not answer; the stages under way go on"]
    finally:
        server.stop()


class Recorder:
    """A launcher whose trainings take a second and tell when; two other stages end together, or not at all."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, float, float]] = []
        self.both = threading.Barrier(2, timeout=300)

    def begun(self, node: Node, key: str) -> bool:
        return False

    def launch(self, node: Node, key: str, say: Any) -> None:
        began = time.monotonic()
        if node.name.startswith(("pretrain", "finetune")):
            time.sleep(1)
        else:
            self.both.wait()
        self.spans.append((node.name, began, time.monotonic()))

    def recorded(self, node: Node, key: str) -> None:
        pass

    def stop(self) -> None:
        pass


def installed() -> tuple[Any, ...]:
    """Everything that was installed, without the times of its installation."""
    with get_client(sync_client=True) as client:
        pools = {
            pool.name: (pool.type, pool.base_job_template) for pool in client.read_work_pools()
        }
        limits = {limit.name: limit.limit for limit in client.read_global_concurrency_limits()}
        automations = {
            found.name: found.model_dump(exclude={"id"})  # sets stay sets: they have no order
            for found in client.read_automations()
        }
        flows = {flow.id: flow.name for flow in client.read_flows()}
        deployments = sorted(
            (
                f"{flows[found.flow_id]}/{found.name}",
                found.work_pool_name,
                found.parameters,
                [schedule.active for schedule in found.schedules],
            )
            for found in client.read_deployments()
        )
    return pools, limits, automations, deployments


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def state(api: str, run: str) -> str:
    with urllib.request.urlopen(f"{api}/flow_runs/{run}", timeout=120) as answer:
        return str(json.load(answer)["state_type"])


def wait_until(condition: Any, seconds: float = 300.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value
