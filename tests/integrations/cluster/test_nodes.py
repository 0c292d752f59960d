"""The rendered pods of a training for real: as processes of this machine, started again by the Job's own policy."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from blip.files import digest_file
from blip.integrations.cluster.manifests import INDEX, PORT, Manifest, render
from blip.integrations.cluster.settings import Cluster, load_cluster
from blip.integrations.versioning import Node
from tests.cli.conftest import TINY, VERBS, Project
from tests.integrations.cluster.conftest import KEY, OVERLAYS, expanded
from tests.ports import free_port

pytestmark = pytest.mark.slow

PRETRAIN = "blip pretrain --data datasets/web --data datasets/human --tokenizer tokenizer"
FINETUNE = "blip finetune captioning --data datasets/human"


class Pods:
    """The pods of a Job, as its controller runs them; loopback addresses stand in for their names."""

    def __init__(self, documents: list[Manifest]) -> None:
        self.job = documents[-1]
        self.spec = self.job["spec"]
        self.container = self.spec["template"]["spec"]["containers"][0]
        self.ended: list[tuple[int, int, str]] = []  # pod, exit code, what the policy did
        self.said = ""
        self.port = free_port()

    def run(self, *events: tuple[int, int, signal.Signals]) -> str:
        """Run all to the end of the Job; give its condition: Complete or Failed.

        Args:
            events: Once there is the checkpoint of a step, a pod gets a signal.
        """
        coming = list(events)
        running = {index: self._start(index) for index in range(self.spec.get("completions", 1))}
        deadline = time.monotonic() + 300
        try:
            while running:
                assert time.monotonic() < deadline, f"{self.ended}\n{self.said}"
                time.sleep(0.02)
                if coming and self._saved() >= coming[0][0]:
                    _, index, number = coming.pop(0)
                    hit(running[index], number)
                for index in [i for i, pod in running.items() if pod.poll() is not None]:
                    action = self._judge(index, running.pop(index))
                    if action == "FailJob" or self._given_up():
                        return "Failed"
                    if action != "Succeeded":
                        running[index] = self._start(index)
            return "Complete"
        finally:
            for pod in running.values():
                hit(pod, signal.SIGKILL)

    def _start(self, index: int) -> subprocess.Popen[str]:
        name = self.job["metadata"]["name"]
        places = {
            f"{name}-0.{name}:{PORT}": f"127.0.0.1:{self.port}",
            f"{name}-${INDEX}.{name}": f"127.0.0.$(({INDEX} + 1))",
        }
        *shell, command = self.container["command"]
        command = expanded(command)
        for written, here in places.items():
            command = command.replace(written, here)
        environment = {each["name"]: each["value"] for each in self.container["env"]}
        environment |= {INDEX: str(index)} if "completionMode" in self.spec else {}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.defpath}"
        environment["OMP_NUM_THREADS"] = "1"
        return subprocess.Popen(
            [*shell, command],
            cwd=self.container["workingDir"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _judge(self, index: int, pod: subprocess.Popen[str]) -> str:
        """Ask the policy about a pod that has ended."""
        self.said += f"--- pod {index}\n{pod.communicate()[0]}"
        code = 128 - pod.returncode if pod.returncode < 0 else pod.returncode
        action = "Succeeded" if code == 0 else "Count"
        for rule in self.spec["podFailurePolicy"]["rules"]:
            if code in rule.get("onExitCodes", {}).get("values", []):
                action = rule["action"]
                break
        self.ended.append((index, code, action))
        return action

    def _given_up(self) -> bool:
        return Counter(action for _, _, action in self.ended)["Count"] > self.spec["backoffLimit"]

    def _saved(self) -> int:
        folders = Path(self.container["workingDir"]).glob("runs/*/checkpoints/step-*")
        return max((int(folder.name.removeprefix("step-")) for folder in folders), default=0)


def hit(pod: "subprocess.Popen[str]", number: signal.Signals) -> None:
    """Tell a pod's first process to leave; or end all its processes at once, as losing its node does."""
    tree = psutil.Process(pod.pid)
    children = tree.children(recursive=True) if number == signal.SIGKILL else []
    for process in [*children, tree]:
        process.send_signal(number)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tiny experiment, done up to its pre-training."""
    from blip.config import PRESETS, load_config
    from blip.data.world import draw_world

    changes = {
        **TINY,
        "pretrain.steps": 30,
        "pretrain.checkpoint_every": 5,
        "finetune.captioning.steps": 3,
    }
    project = Project(tmp_path_factory.mktemp("project"), changes)
    (project.path / "data").mkdir()
    world = load_config(PRESETS / "demo.yaml", changes).world
    assert world is not None
    draw_world(world, project.path / "data")
    for verb in VERBS[:5]:
        if not verb.startswith("validate"):
            project.run(verb)
    return project


@pytest.fixture
def here(ready: Project) -> Iterator[Cluster]:
    """A cluster whose shared volume is mounted where the project lies."""
    yield cluster_at(ready)
    shutil.rmtree(ready.path / "runs", ignore_errors=True)


def cluster_at(project: Project) -> Cluster:
    document = load_cluster(OVERLAYS / "local" / "jobs.yaml").model_dump()
    storage = {**document["storage"], "mount": str(project.path)}
    return Cluster.model_validate({**document, "storage": storage})


def pods(project: Project, cluster: Cluster, command: str, **how: Any) -> Pods:
    verb = command.split()[1]
    return Pods(render(Node(f"{verb}@tiny", command), KEY, cluster, project.path, **how))


@pytest.fixture(scope="module")
def model(ready: Project) -> Path:
    """What two processes in one pod train."""
    alone = pods(ready, cluster_at(ready), f"{PRETRAIN} --out models/one", gpus=2)
    assert alone.run() == "Complete", alone.said
    assert alone.ended == [(0, 0, "Succeeded")]
    return ready.path / "models/one"


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(
            [(5, 1, signal.SIGTERM), (15, 1, signal.SIGKILL)], id="the second leaves, then is lost"
        ),
        pytest.param([(10, 0, signal.SIGKILL)], id="the first is lost, with the place to meet at"),
    ],
)
def test_a_training_of_two_pods_survives_the_loss_of_either_to_the_bit(
    ready: Project, here: Cluster, model: Path, events: list[Any]
) -> None:
    out = ready.path / "models/two"
    shutil.rmtree(out, ignore_errors=True)
    two = pods(ready, here, f"{PRETRAIN} --out models/two", nodes=2)
    assert two.run(*events) == "Complete", two.said
    lost = events[-1][1]
    counted = [ended for ended in two.ended if ended[2] == "Count"]
    assert counted == [(lost, 137, "Count")], two.said  # of a node that is lost it would not be
    assert (1 - lost, 75, "Ignore") in two.ended
    if len(events) > 1:
        assert {(0, 143, "Ignore"), (1, 143, "Ignore")} <= set(two.ended), two.said
    assert "going on from step" in two.said
    assert digest_file(out / "model.safetensors") == digest_file(model / "model.safetensors")


def test_two_pods_are_one_process(ready: Project, here: Cluster, model: Path) -> None:
    """By fine-tuning: in pre-training, contrast and matching compare within a process."""
    found = []
    for nodes in (2, 1):
        command = f"{FINETUNE} --model {model} --out models/captioner_of_{nodes}"
        each = pods(ready, here, command, nodes=nodes)
        assert each.run() == "Complete", each.said
        found.append(load_file(ready.path / f"models/captioner_of_{nodes}/model.safetensors"))
    two, one = found
    assert two.keys() == one.keys()
    worst = max(float((two[n].double() - one[n].double()).abs().max()) for n in one)
    assert 0 < worst < 5e-5  # as of two ranks in test_distributed.py; measured: 2.0e-6


def test_a_users_error_fails_the_job_at_once(ready: Project, here: Cluster) -> None:
    wrong = pods(ready, here, f"{PRETRAIN} --data datasets/wub --out models/wrong", nodes=2)
    assert wrong.run() == "Failed"
    assert wrong.ended[-1][1:] == (2, "FailJob"), wrong.said
    assert "datasets/wub: does not exist" in wrong.said
