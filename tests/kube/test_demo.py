"""The real graph at tiny size on a real cluster: the whole loop, several pods a stage, a pod killed in training."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from benchmarks.s3 import environment
from blip.files import digest_directory
from blip.integrations import versioning
from blip.integrations.experiment import run_experiment
from blip.integrations.runner import Outcome
from tests.kube.conftest import Kubectl, change, place, wait_until

pytestmark = [
    pytest.mark.kube,
    pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning"),  # pygtrie within DVC
]


DVC = [sys.executable, "-m", "dvc"]


def run(
    root: Path, launcher: Any = "kubernetes", **options: Any
) -> tuple[list[Outcome], list[str]]:
    """Run the project, which must end well; give what became of its stages, and what they said."""
    said: list[str] = []
    outcomes, code = run_experiment(
        root,
        launcher=launcher,
        slots=2,
        say=lambda name, line: said.append(f"{name}: {line}"),
        done=lambda outcome: said.append(f"{outcome}"),
        **options,
    )
    assert code == 0, "\n".join(said)
    return outcomes, said


def blip(verb: str) -> None:
    command = [sys.executable, "-m", "blip", *verb.split()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def add_remote() -> None:
    """Make the bucket the DVC remote of the project in the current directory."""
    subprocess.run([*DVC, "remote", "add", "-d", "store", "s3://bucket/dvc"], check=True)


def test_the_loop_runs_as_pods_and_parts_give_the_bytes_of_one(
    prepared_template: Path, volume: Path, cluster_file: Path, kubectl: Kubectl, monkeypatch: Any
) -> None:
    root = place(prepared_template, volume, monkeypatch)
    stages = yaml.safe_load(cluster_file.read_text())["stages"]
    parts = {verb: {**stages["default"], "parts": 2} for verb in ("caption", "score")}
    change(cluster_file, stages={**stages, **parts})
    outcomes, said = run(root, targets=("select", "evaluate@unfiltered_retrieval"))
    jobs = json.loads(kubectl("get", "jobs", "-o", "json"))["items"]
    names = sorted(job["metadata"]["annotations"]["blip/stage"] for job in jobs)
    assert {outcome.name for outcome in outcomes if outcome.state == "ran"} == set(names)
    assert names == sorted(
        ["pretrain@unfiltered", "finetune@captioner", "finetune@filter", "select"]
        + ["evaluate@unfiltered_retrieval"]
        + 2 * ["caption", "score"]  # the parts, and the one that puts them together
    )
    for verb in ("caption", "score"):
        for part in range(2):
            assert any(line.startswith(f"{verb}: [{part}] ") for line in said)
    assert not set(names) & versioning.survey()[1]

    blip("caption --model models/captioner --data datasets/web --out datasets/again")
    assert same(root, "again", "synthetic")
    blip("score --model models/filter --data datasets/web --data datasets/again --out datasets/one")
    assert same(root, "one", "scored")


def same(root: Path, left: str, right: str) -> bool:
    return digest_directory(root / "datasets" / left) == digest_directory(root / "datasets" / right)


@pytest.fixture(scope="session")
def undisturbed(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared project after a pre-training on this machine."""
    root = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(prepared_template, root, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLIP_TRACKING", "off")
        patch.chdir(root)
        set_steps(root)
        run(root, "local", targets=("pretrain@human",))
    return root


def set_steps(root: Path) -> None:
    """Give a pre-training enough steps to be disturbed."""
    file = root / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params["pretrain"] |= {"steps": 150, "checkpoint_every": 10}
    file.write_text(yaml.safe_dump(params))


def test_a_pod_killed_in_the_middle_of_training_goes_on_to_the_same_weights(
    undisturbed: Path,
    prepared_template: Path,
    volume: Path,
    cluster_file: Path,
    kubectl: Kubectl,
    monkeypatch: Any,
) -> None:
    root = place(prepared_template, volume, monkeypatch)
    set_steps(root)
    change(cluster_file, retries=1)
    command = [sys.executable, "-m", "blip", "k8s", "submit", "pretrain@human"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: len(list(root.glob("runs/pretrain-*/checkpoints/*"))) > 1)
    for pid in trainings(root):
        os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert len(kubectl("get", "pods", "-o", "name").split()) == 2
    assert "was killed by SIGKILL" in said
    assert "going on from step" in said
    assert digest_directory(root / "models/human") == digest_directory(undisturbed / "models/human")


def trainings(root: Path) -> list[int]:
    """Find the processes of our pods, which are this machine's, that train in a workspace."""
    server = os.environ.get("AWS_ENDPOINT_URL", "").rpartition(":")[2]  # workspaces may be alike
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        ours = process.info["cwd"] == str(root) and "pretrain" in words and "submit" not in words
        if ours and process.environ().get("AWS_ENDPOINT_URL", "").rpartition(":")[2] == server:
            found.append(process.info["pid"])
    assert found
    return found


@pytest.fixture
def bucket_only(
    s3_server: tuple[Path, str],
    host_address: str,
    bucket: Path,
    cluster_file: Path,
    kubectl: Kubectl,
) -> Path:
    """A cluster whose pods share nothing but a bucket, the DVC remote of the project."""
    port = s3_server[1].rpartition(":")[2]
    variables = environment(f"http://{host_address}:{port}")
    kubectl(
        "create", "secret", "generic", "store", *(f"--from-literal={k}={v}" for k, v in variables.items())
    )  # fmt: skip
    settings = yaml.safe_load(cluster_file.read_text())
    change(
        cluster_file,
        storage={"kind": "s3", "secret": "store"},
        env={**settings["env"], "BLIP_TRACKING": "off"},
    )
    return bucket


def test_without_a_shared_volume_a_killed_pod_goes_on_and_the_result_comes_back(
    undisturbed: Path,
    prepared_template: Path,
    tmp_path: Path,
    bucket_only: Path,
    monkeypatch: Any,
) -> None:
    root = tmp_path / "project"
    shutil.copytree(prepared_template, root, symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("BLIP_TRACKING", "off")
    set_steps(root)
    add_remote()
    change(Path(os.environ["BLIP_CLUSTER"]), retries=1)
    command = [sys.executable, "-m", "blip", "k8s", "submit", "pretrain@human"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if (
            (step := re.search(r"(\d+)/150 steps", line))
            and int(step[1]) > 20
            and "Killed" not in said
        ):
            for pid in trainings(Path("/workspace")):
                os.kill(pid, signal.SIGKILL)
            said += "Killed\n"
    assert process.wait() == 0, said
    assert "was killed by SIGKILL" in said
    assert "going on from step" in said
    assert digest_directory(root / "models/human") == digest_directory(undisturbed / "models/human")
    status = subprocess.run(
        [*DVC, "status", "pretrain@human"], capture_output=True, text=True, check=True
    )
    assert "up to date" in status.stdout
    assert not list(bucket_only.rglob("runs/*/*.tar"))


def test_without_a_shared_volume_parts_give_the_bytes_of_one(
    prepared_template: Path,
    drawn_template: Path,
    tmp_path: Path,
    bucket_only: Path,
    kubectl: Kubectl,
    monkeypatch: Any,
) -> None:
    root = tmp_path / "project"
    shutil.copytree(drawn_template, root, symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("BLIP_TRACKING", "off")
    add_remote()
    blip("k8s submit ingest@web --parts 2 --no-wait")
    kubectl("wait", "--for=condition=complete", "--timeout=600s", "jobs", "--all")
    kept = sorted(bucket_only.rglob("runs/*/*.tar"))
    assert [file.name for file in kept] == ["0.tar", "1.tar"]
    shards = [set(finished(file)) for file in kept]
    assert all(shards)
    assert not shards[0] & shards[1]
    blip("k8s submit ingest@web --parts 2")
    assert len(kubectl("get", "jobs", "-o", "name").split()) == 2
    web = "datasets/web"
    assert digest_directory(root / web) == digest_directory(prepared_template / web)
    assert not list(bucket_only.rglob("runs/*/*.tar"))


def finished(kept: Path) -> list[str]:
    """Name the shards in the working state that a pod kept."""
    with tarfile.open(kept) as files:
        return re.findall(r"/shards/(\d+)$", "\n".join(files.getnames()), re.MULTILINE)
