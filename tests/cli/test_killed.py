"""Killed or interrupted at any stage, an experiment goes on, and ends with the bytes of an undisturbed one."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from blip.files import digest_directory
from tests.cli.conftest import TINY, VERBS, Project

pytestmark = pytest.mark.slow

KILL_AFTER = (0.2, 1.0)  # of the time that the stage takes undisturbed, on this machine


def out_of(verb: str) -> str:
    return verb.split("--out ")[1].split()[0]


def test_sigkill_and_ctrl_c_in_every_stage(tmp_path: Path, raw: Path) -> None:
    projects = {}
    for name in ("whole", "disturbed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").symlink_to(raw)
        projects[name] = Project(tmp_path / name, TINY)
    whole, disturbed = projects["whole"], projects["disturbed"]
    dice = random.Random(5)
    killed = 0
    for verb in VERBS:
        began = time.monotonic()
        whole.run(verb)
        took = time.monotonic() - began
        out = disturbed.path / out_of(verb)
        for number in (signal.SIGKILL, signal.SIGINT):
            process = disturbed.start(verb)
            try:
                process.wait(took * dice.uniform(*KILL_AFTER))
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                printed, _ = process.communicate()
                killed += 1
                assert process.returncode in (
                    (-9,) if number == signal.SIGKILL else (130, -2, 0)
                ), printed
                assert not out.exists() or (out / "stage.json").is_file(), "a half-written output"
        disturbed.run(verb)
        assert digest_directory(out) == digest_directory(whole.path / out_of(verb)), verb
    assert killed > len(VERBS) // 2
