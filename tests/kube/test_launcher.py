"""The toy project's stages as Jobs on a real cluster: what runs, how it ends, and who joins whom."""

import json
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from blip.integrations.cluster.launcher import KubernetesLauncher
from blip.integrations.cluster.settings import load_cluster
from blip.integrations.experiment import run_experiment
from blip.integrations.launch import StageFailedError, StoppedError
from blip.integrations.versioning import Node
from tests.kube.conftest import Kubectl, change, wait_until
from tests.kube.proxy import proxy

pytestmark = [
    pytest.mark.kube,
    pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning"),  # pygtrie within DVC
]

BLIP, DVC = [sys.executable, "-m", "blip"], [sys.executable, "-m", "dvc"]
ALL = ["prepare", "train@left", "train@right", "select", "finish"]

RUNNER = """
import os, pathlib, sys
from blip.integrations.experiment import run_experiment
os.umask(0)
say = lambda name, line: print(name, line, flush=True)
_, code = run_experiment(
    pathlib.Path.cwd(), launcher="kubernetes", slots=2, say=say, done=lambda o: print(o, flush=True)
)
sys.exit(code)
"""


def run(toy: Any, **options: Any) -> tuple[dict[str, str], int, list[str]]:
    """Run the project; give its stages' states, the exit code and what the pods said."""
    said: list[str] = []
    outcomes, code = run_experiment(
        toy.root,
        launcher="kubernetes",
        slots=2,
        say=lambda name, line: said.append(f"{name}: {line}"),
        done=lambda _: None,
        **options,
    )
    return {outcome.name: outcome.state for outcome in outcomes}, code, said


def jobs(kubectl: Kubectl) -> dict[str, dict[str, Any]]:
    """Give the Jobs of the namespace by their stage."""
    found = json.loads(kubectl("get", "jobs", "-o", "json"))["items"]
    return {job["metadata"]["annotations"]["blip/stage"]: job for job in found}


def pods(kubectl: Kubectl) -> list[str]:
    return kubectl("get", "pods", "-o", "name").split()


def test_every_stage_is_a_job_and_what_is_up_to_date_none(toy: Any, kubectl: Kubectl) -> None:
    states, code, said = run(toy)
    assert (states, code) == (dict.fromkeys(ALL, "ran"), 0)
    assert next(line for line in said if "begins" in line) == "prepare: prepare begins"
    assert set(jobs(kubectl)) == set(ALL)
    assert (toy.root / "out/finish/text").read_text().startswith("finish(select(train_left(prepare")
    assert len(toy.began()) == 5
    status = subprocess.run([*DVC, "status"], capture_output=True, text=True, check=True)
    assert "up to date" in status.stdout
    states, code, _ = run(toy)
    assert (states, code, toy.began()) == (dict.fromkeys(ALL, "cached"), 0, [])


def test_a_result_that_is_lost_is_made_again_though_its_job_is_still_there(toy: Any) -> None:
    run(toy, targets=("prepare",))
    toy.began()
    subprocess.run(["rm", "-rf", ".dvc/cache", "out/prepare", "dvc.lock"], check=True)
    states, code, _ = run(toy, targets=("prepare",))
    assert (states, code, toy.began()) == ({"prepare": "ran"}, 0, ["prepare"])


ENDINGS = {  # what the Job is like, and how it must end
    "user": (
        {"retries": 3},
        "echo that is no number; exit 2",
        2,
        r"ended with exit code 2: that is no number",
    ),
    "crash": ({}, "python -c 'import os; os.kill(os.getpid(), 11)'", 139, r"was killed by SIGSEGV"),
    "memory": (
        {"memory": "48Mi"},
        "python -c 'x = b\"x\" * (400 << 20)'",
        137,
        r"OOMKilled: needs more than its memory limit of 48Mi",
    ),
    "image": (
        {"image": "docker.io/library/blip-typo:1"},
        "true",
        2,
        r"ErrImageNeverPull: image docker.io/library/blip-typo:1: .*\(for 10 s\)",
    ),
    "room": (
        {"cpu": "900"},
        "true",
        2,
        r"Unschedulable: not enough cpu: 0/1 nodes are available: 1 Insufficient cpu",
    ),
    "secret": (
        {"env_from": ["nobody-made-it"]},
        "true",
        2,
        r'CreateContainerConfigError: secret "nobody-made-it" not found',
    ),
    "slow": ({}, "sleep 60", 124, r"DeadlineExceeded: took longer than its 3 s"),
}


def test_endings_are_told_apart_in_one_line(toy: Any, cluster_file: Path, tmp_path: Path) -> None:
    def end(name: str) -> StageFailedError:
        settings, command, _, _ = ENDINGS[name]
        file = tmp_path / f"{name}.yaml"
        file.write_bytes(cluster_file.read_bytes())
        place = yaml.safe_load(cluster_file.read_text())["stages"]["default"]
        places = {
            "stages": {"default": {**place, **{k: v for k, v in settings.items() if k in place}}}
        }
        others = {k: v for k, v in settings.items() if k not in place}
        if name == "image":
            others["image_pull_policy"] = "Never"  # there is no registry to ask
        change(file, **others, **places)
        launcher = KubernetesLauncher(toy.root, load_cluster(file))
        node = Node(name, command, timeout=3 if name == "slow" else None)
        with pytest.raises(StageFailedError) as caught:
            launcher.launch(node, "0" * 64, lambda _: None)
        return caught.value

    with ThreadPoolExecutor(len(ENDINGS)) as pool:
        errors = dict(zip(ENDINGS, pool.map(end, ENDINGS), strict=True))
    for name, (_, _, code, message) in ENDINGS.items():
        assert (name, errors[name].code) == (name, code), errors[name]
        assert re.match(message, str(errors[name])), errors[name]
        assert "\n" not in str(errors[name])


def test_a_crash_is_tried_again_within_the_job(
    toy: Any, cluster_file: Path, kubectl: Kubectl
) -> None:
    change(cluster_file, retries=1)
    launcher = KubernetesLauncher(toy.root, load_cluster())
    said: list[str] = []
    command = "if [ -e tried ]; then echo well; else touch tried; echo oh; exit 3; fi"
    launcher.launch(Node("flaky", command), "1" * 64, said.append)
    assert {"oh", "well"} <= set(said)
    assert any("ended with exit code 3: oh; another one goes on" in line for line in said)


def test_a_killed_run_joins_its_job_and_takes_what_ended_meanwhile(
    toy: Any, kubectl: Kubectl
) -> None:
    toy.order(prepare={"until": "GO"})
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", RUNNER], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert any(b"prepare begins" in line for line in iter(process.stdout.readline, b""))
        process.kill()
        process.wait()
    assert not (toy.root / "dvc.lock").exists()
    with (toy.control / "log").open("a") as log:
        log.write(json.dumps({"name": "GO"}) + "\n")
    wait_until(lambda: jobs(kubectl)["prepare"]["status"].get("succeeded"))
    states, code, said = run(toy)
    assert (states["prepare"], code) == ("ran", 0)
    assert any("of an earlier run had ended" in line for line in said)
    assert sorted(toy.began()) == ["finish", "prepare", "select", "train_left", "train_right"]
    assert set(run(toy)[0].values()) == {"cached"}


def test_a_stopped_run_leaves_no_pod_and_a_deleted_job_is_no_failure(
    toy: Any, kubectl: Kubectl
) -> None:
    toy.order(prepare={"sleep": 600})
    process = subprocess.Popen([sys.executable, "-c", RUNNER], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert any(b"prepare begins" in line for line in iter(process.stdout.readline, b""))
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130
    assert (jobs(kubectl), pods(kubectl)) == ({}, [])

    begun = threading.Event()
    ended: list[Any] = []

    def go_on() -> None:
        launcher = KubernetesLauncher(toy.root, load_cluster())
        try:
            launcher.launch(Node("long", "echo here; sleep 600"), "2" * 64, lambda _: begun.set())
        except StoppedError as error:
            ended.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    assert begun.wait(300)
    result = subprocess.run([*BLIP, "k8s", "cancel", "long"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (jobs(kubectl), pods(kubectl)) == ({}, [])
    thread.join(60)
    assert [str(error) for error in ended] == ["was cancelled: its Job was deleted"]


def test_two_experiments_run_at_once(toy: Any, kubectl: Kubectl) -> None:
    toy.order(prepare={"until": "train_left"})  # which only the other experiment can begin
    with ThreadPoolExecutor(1) as pool:
        command = [*BLIP, "run", "--launcher", "kubernetes"]
        first = pool.submit(subprocess.run, command, capture_output=True, text=True)
        wait_until(lambda: "prepare" in [entry["name"] for entry in toy.log()])
        toy.order()
        second = ["--set", "seed=8", "--set", "pretrain.steps=9"]
        other = subprocess.run([*command, *second], capture_output=True, text=True)
        assert other.returncode == 0, other.stdout + other.stderr
        assert first.result().returncode == 0, first.result().stderr
    names = kubectl("get", "jobs", "-o", "name").split()
    assert len(names) == len(set(names)) == 8  # `select` and `finish` have the same inputs in both
    (workspace,) = [p for p in (toy.root / ".blip/experiments").iterdir() if p.is_dir()]
    assert (workspace / "out/finish/text").exists()
    assert len(list(toy.root.glob("runs"))) == 1


def test_a_cluster_that_is_away_for_a_while_costs_nothing_but_time(
    toy: Any, kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = yaml.safe_load(kubeconfig.read_text())
    server = document["clusters"][0]["cluster"]["server"]
    with proxy(int(server.rpartition(":")[2])) as way:
        document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{way.port}"
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(document))
        monkeypatch.setenv("KUBECONFIG", str(file))
        launcher = KubernetesLauncher(toy.root, load_cluster())
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            if line == "line 2":
                way.cut()
                threading.Timer(4, way.mend).start()

        count = "for i in $(seq 1 10); do echo line $i; sleep 1; done"
        launcher.launch(Node("count", count), "3" * 64, say)
    assert said.count("the cluster does not answer; waiting for it") >= 1
    assert [line for line in said if line.startswith("line")] == [f"line {i}" for i in range(1, 11)]
