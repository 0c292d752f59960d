"""`blip pretrain` by torchrun: one stage of two processes, killed, stopped, and gone on."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from blip.files import digest_file, read_json
from tests.cli.conftest import VERBS, Project

pytestmark = pytest.mark.slow

PRETRAIN = next(verb for verb in VERBS if verb.startswith("pretrain"))
LONG = "--set pretrain.steps=40 --set pretrain.checkpoint_every=5"


def torchrun(project: Project, verb: str, ranks: int, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(ranks), *options, "-m", "blip", *verb.split()),
        ],
        cwd=project.path,
        env={**os.environ, "BLIP_TRACKING": "off", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def after_checkpoint(project: Project, process: Any, step: int) -> None:
    """Wait until a run has saved the checkpoint of a step, or a later one."""
    while process.poll() is None:
        names = [p.name for p in project.path.glob("runs/pretrain-*/checkpoints/step-*")]
        if names and max(names) >= f"step-{step:08}":
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0])


def test_two_processes_are_one_stage(project: Project) -> None:
    for verb in VERBS[: VERBS.index(PRETRAIN)]:
        if not verb.startswith("validate"):
            project.run(verb)
    out = project.path / "models/unfiltered"

    # A worker dies: the other says so and leaves, both begin again where they were.
    process = torchrun(project, f"{PRETRAIN} {LONG}", 2, "--max-restarts", "3")
    after_checkpoint(project, process, 10)
    psutil.Process(process.pid).children()[-1].kill()
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert "process 0 of 2 stops: it has lost process 1" in printed
    assert "going on from step" in printed
    assert read_json(out / "metrics.json")["training"]["steps"] == 40
    assert read_json(out / "stage.json")["stage"] == "pretrain"

    whole = f"{PRETRAIN} {LONG}".replace("models/unfiltered", "models/whole")
    process = torchrun(project, whole, 2)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    for name in ("model.safetensors", "curves.csv"):
        assert digest_file(out / name) == digest_file(project.path / "models/whole" / name)

    # The same command has nothing to do; a bad one says so once.
    process = torchrun(project, f"{PRETRAIN} {LONG}", 2)
    assert "pretrain-unfiltered is up to date" in process.communicate()[0]
    assert process.returncode == 0
    process = torchrun(project, PRETRAIN.replace("datasets/web", "datasets/wub"), 2)
    printed, _ = process.communicate()
    assert printed.count("datasets/wub: does not exist") == 1
    assert process.returncode == 1  # of torchrun

    # Told to leave in the middle, it goes on with another number of processes, in the same order.
    other = f"{PRETRAIN} {LONG}".replace("models/unfiltered", "models/other") + " --set seed=8"
    process = torchrun(project, other, 2)
    after_checkpoint(project, process, 10)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate()
    assert "a checkpoint is saved, the same command goes on from it" in printed
    assert not (project.path / "models/other").exists()
    assert "going on from step" in project.run(other)
    assert read_json(project.path / "models/other/metrics.json")["training"]["steps"] == 40


def test_a_second_training_of_the_same_output_is_refused(project: Project) -> None:
    for verb in VERBS[: VERBS.index(PRETRAIN)]:
        if not verb.startswith("validate"):
            project.run(verb)
    first = project.start(f"{PRETRAIN} {LONG} --set pretrain.steps=4000")
    after_checkpoint(project, first, 5)
    for other in ("", "--set seed=8"):
        printed = project.run(f"{PRETRAIN} {LONG} --set pretrain.steps=4000 {other}", code=2)
        assert "a stage that writes models/unfiltered is already running (process" in printed
    first.send_signal(signal.SIGTERM)
    printed, _ = first.communicate()
    assert first.returncode == 143, printed
