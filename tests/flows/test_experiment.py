"""The flows: what they offer, what prefect.yaml deploys, and whole runs against a real server."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prefect import Flow, runtime

from blip.config import PRESETS, load_config, merge, read_yaml
from blip.integrations import versioning
from blip.integrations.runner import Outcome
from flows import experiment as flows
from flows.stages import flow_state
from tests.flows.server import Api, prefect, worker

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # pygtrie within DVC

ROOT = Path(__file__).parents[2]
THRESHOLD = load_config(PRESETS / "demo.yaml").capfilt.threshold
FLOWS = {flow.name: flow for flow in vars(flows).values() if isinstance(flow, Flow)}


def test_every_preset_can_be_chosen() -> None:
    assert set(get_args(flows.Preset)) == {file.stem for file in PRESETS.glob("*.yaml")}


def test_every_flow_is_deployed_under_its_name() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    deployed = {(d["work_pool"]["name"], d["name"], d["entrypoint"]) for d in deployments}
    assert len(deployments) == len(deployed)
    assert deployed == {
        place
        for name in FLOWS
        for place in (
            ("blip", name, f"flows/experiment.py:{name}"),
            ("blip-kubernetes", "kubernetes", f"flows/experiment.py:{name}"),
        )
    }


def test_parameters_make_a_form() -> None:
    for flow in FLOWS.values():
        schema = flow.parameters.properties
        assert set(schema) == {"name", "preset", "overrides", "launcher", "slots", "share"}
        assert schema["launcher"]["enum"] == ["local", "kubernetes"]
        assert "capfilt" in schema["overrides"]["properties"]
        assert '{"capfilt": {"threshold": 0.7}}' in schema["overrides"]["description"]
        assert flow.description


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"overrides": {"ingest": {}}}, "params.yaml"),
        ({"overrides": {"capfilt": {"threshold": 0.7}}}, "params.yaml capfilt.threshold=0.7"),
        ({"preset": "demo", "overrides": {"world": None}}, "demo world=None"),
        ({"name": "mine", "overrides": {"evaluate.truth": "x" * 200}}, "mine ..."),
    ],
)
def test_a_flow_run_is_named_after_what_is_special(
    parameters: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"name": None, "preset": None, **parameters}
    monkeypatch.setattr(runtime.flow_run, "parameters", given, raising=False)
    assert flows._run_name() == name


def test_the_parts_add_up_to_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    groups = {name.split("@")[0] for name in versioning.read_graph()} - {"data.dvc", "report"}
    reached: set[str] = set()
    for targets in flows.PARTS.values():
        reached |= {target.split("@")[0] for target in targets}
    # what is not a target is upstream of one
    assert groups - reached == {"ingest", "validate", "caption", "score", "evaluate"}


def test_a_flow_fails_where_a_stage_fails_and_says_which() -> None:
    good = [Outcome("a", "ran"), Outcome("b", "cached"), Outcome("c", "cached")]
    assert flow_state(good).message == "1 ran, 2 cached"
    assert flow_state(good).is_completed()
    bad = [
        *good,
        Outcome("d", "failed", message="ended with exit code 1", code=1),
        Outcome("e", "skipped"),
    ]
    assert flow_state(bad).is_failed()
    assert "d ended with exit code 1" in str(flow_state(bad).message)
    assert flow_state([*good, Outcome("d", "stopped")]).is_cancelled()


@pytest.fixture
def api(prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    return Api(prefect_api)


def run_flow(**parameters: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flows", "experiment", json.dumps({"slots": 2, **parameters})]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_stages_are_tasks_and_what_is_up_to_date_shows_as_cached(toy: Any, api: Api) -> None:
    result = run_flow()
    assert result.returncode == 0, result.stderr
    flow_run = api.last_flow_run()
    tasks = api.tasks(flow_run, 5)
    assert (flow_run["state_type"], len(toy.began())) == ("COMPLETED", 5)
    assert {task["state_name"] for task in tasks.values()} == {"Completed"}
    assert tasks["train@left"]["tags"] == ["train"]
    waited_for = {entry["id"] for entry in tasks["finish"]["task_inputs"]["wait_for"]}
    assert waited_for == {tasks["select"]["id"], tasks["train@right"]["id"]}
    assert "train_left begins" in result.stderr

    toy.set("capfilt.threshold", 0.7)
    assert run_flow().returncode == 0
    toy.set("capfilt.threshold", THRESHOLD)
    assert toy.began() == ["select"]
    assert run_flow().returncode == 0
    tasks = api.tasks(api.last_flow_run(), 5)
    assert {name: task["state_name"] for name, task in tasks.items()} == {
        "prepare": "Cached",
        "train@left": "Cached",
        "train@right": "Cached",
        "select": "Restored",
        "finish": "Cached",
    }


@pytest.mark.slow
def test_a_failed_stage_fails_the_flow_and_the_next_run_goes_on(toy: Any, api: Api) -> None:
    toy.order(train_left={"exit": 2})
    result = run_flow()
    assert result.returncode == 2
    assert "train@left   failed" in result.stdout
    flow_run = api.last_flow_run()
    assert flow_run["state_type"] == "FAILED"
    assert "train@left ended with exit code 2" in flow_run["state"]["message"]
    states = {name: task["state_name"] for name, task in api.tasks(flow_run, 5).items()}
    assert states == {
        "prepare": "Completed",
        "train@left": "Failed",
        "train@right": "Completed",
        "select": "Skipped",
        "finish": "Skipped",
    }
    toy.order()
    toy.began()
    assert run_flow().returncode == 0
    assert sorted(toy.began()) == ["finish", "select", "train_left"]


@pytest.mark.slow
def test_bad_parameters_end_with_one_message(toy: Any, api: Api) -> None:
    result = run_flow(overrides={"capfilt.treshold": 0.7})
    assert result.returncode == 2
    assert "did you mean 'capfilt.threshold'?" in our_words(result.stderr)
    assert "Traceback" not in result.stderr
    result = run_flow(overrides={"capfilt": {"treshold": 0.7}})
    assert result.returncode == 2
    assert "overrides.capfilt.treshold: Extra inputs" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    result = run_flow(launcher="kubernetes")
    assert result.returncode == 2
    assert "jobs.yaml: cannot be read" in our_words(result.stderr)


def our_words(stderr: str) -> str:
    """Give our one message; Prefect logs around it when it likes."""
    (message,) = [line for line in stderr.splitlines() if line.startswith("blip: ")]
    return message


@pytest.mark.slow
def test_a_terminated_flow_takes_its_stages_along(toy: Any, api: Api) -> None:
    toy.order(train_left={"sleep": 600}, train_right={"sleep": 600})
    process = subprocess.Popen([sys.executable, "-m", "flows", "experiment", '{"slots": 2}'])
    pids = wait_until(lambda: pids_of(toy, "train_left", "train_right"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == -signal.SIGTERM  # what a shell calls 143
    assert not any(alive(pid) for pid in pids)
    assert api.last_flow_run()["state_type"] == "CRASHED"


@pytest.mark.slow
def test_every_deployment_has_the_form_runs_by_a_worker_and_can_be_cancelled(
    toy: Any, api: Api
) -> None:
    (toy.root / "flows").symlink_to(ROOT / "flows")
    (toy.root / "k8s").symlink_to(ROOT / "k8s")
    (toy.root / "prefect.yaml").write_bytes((ROOT / "prefect.yaml").read_bytes())
    subprocess.run([sys.executable, "-m", "flows", "install"], check=True)
    deployments = api.post("deployments/filter", {})
    assert len(deployments) == 2 * len(FLOWS)
    for deployment in deployments:
        form = deployment["parameter_openapi_schema"]
        assert form["properties"] == flows.experiment.parameters.properties
        assert form["definitions"] == flows.experiment.parameters.definitions
        assert_refuses_what_does_not_fit(api, deployment["id"])
    run = ("deployment", "run", "experiment/experiment", "--param")
    with pytest.raises(AssertionError, match=r"'overrides.capfilt.threshold'"):
        prefect(*run, 'overrides={"capfilt": {"threshold": 7}}')
    with worker():
        prefect(*run, 'overrides={"capfilt": {"threshold": 0.7}}', "--watch")
        flow_run = api.last_flow_run()
        assert (flow_run["state_type"], flow_run["name"]) == (
            "COMPLETED",
            "params.yaml capfilt.threshold=0.7",
        )
        assert len(api.tasks(flow_run, 5)) == 5
        assert len(toy.began()) == 5
        (params,) = toy.root.glob(".blip/experiments/*/params.yaml")
        document = read_yaml(toy.root / "params.yaml")
        assert read_yaml(params) == merge(document, {"capfilt.threshold": 0.7}, params)

        toy.order(prepare={"sleep": 600})
        toy.set("seed", 8)
        prefect("deployment", "run", "experiment/experiment")
        pids = wait_until(lambda: pids_of(toy, "prepare"))
        prefect("flow-run", "cancel", api.last_flow_run()["id"])
        wait_until(lambda: not any(alive(pid) for pid in pids))
        wait_until(lambda: api.last_flow_run()["state_type"] == "CANCELLED")


def assert_refuses_what_does_not_fit(api: Api, deployment: str) -> None:
    for section, reason in (
        ({"treshold": 0.7}, "'overrides.capfilt'.*'treshold' was unexpected"),
        ({"threshold": "high"}, "'overrides.capfilt.threshold'.*'high' is not"),
        ({"threshold": None}, "'overrides.capfilt.threshold'.*None should not be"),
    ):
        parameters = {"overrides": {"capfilt": section}}
        with pytest.raises(urllib.error.HTTPError) as refused:
            api.post(f"deployments/{deployment}/create_flow_run", {"parameters": parameters})
        assert refused.value.code == 409
        assert re.search(reason, json.load(refused.value)["detail"])


def pids_of(toy: Any, *names: str) -> list[int]:
    pids = {entry["name"]: entry["pid"] for entry in toy.log() if "pid" in entry}
    return [pids[name] for name in names] if pids.keys() >= set(names) else []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value
