"""Checkpoints: equal to the bit through any kill, whole or absent, damaged ones passed over."""

import json
import logging
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blip.config import Training
from blip.errors import CheckpointError, DataError
from blip.tracker import NullTracker
from blip.train.checkpoint import DIGESTS, STATE, TENSORS, Checkpoints
from blip.train.trainer import fit

Build = Callable[..., Training]

# What a killed process runs: the toy of conftest.py, long enough to be caught anywhere.
PROGRAM = """
import hashlib, importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("toys", sys.argv[1])
toys = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)
import torch
from blip.config import load_config
from blip.tracker import NullTracker
from blip.train.curve import write_curves
from blip.train.trainer import fit
torch.manual_seed(5)
objective = toys.Toy()
short = {"steps": 120, "checkpoint_every": 3, "log_every": 4}
training = load_config(toys.PARAMS).finetune.captioning.model_copy(update=short)
folder = Path(sys.argv[2])
(folder / "begun").touch()
curve = fit(objective, toys.ToyLoader(), training, NullTracker(), folder)
state = b"".join(t.numpy().tobytes() for t in objective.state_dict().values())
write_curves(curve, folder / "curves.csv")
print(hashlib.sha256(state + (folder / "curves.csv").read_bytes()).hexdigest())
"""


def command(folder: Path) -> list[str]:
    return [
        sys.executable,
        "-c",
        PROGRAM,
        str(Path(__file__).with_name("conftest.py")),
        str(folder),
    ]


def run(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command(folder), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def kill_after(folder: Path, seconds: float) -> bool:
    """Run, and kill some time after the loop began; tell whether that was in the middle."""
    folder.mkdir(exist_ok=True)
    (folder / "begun").unlink(missing_ok=True)
    process = subprocess.Popen(
        command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (folder / "begun").exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_anywhere_ends_in_the_same_bits(tmp_path: Path) -> None:
    began = time.monotonic()
    expected = run(tmp_path / "whole")
    rng = random.Random(0)
    longest = (time.monotonic() - began) / 2
    caught, half_saved = 0, 0
    for attempt in range(2):
        folder = tmp_path / f"killed{attempt}"
        for _ in range(3):
            caught += kill_after(folder, rng.uniform(0.0, longest))
            half_saved += bool(list(folder.glob("checkpoints/.*.partial")))
        assert run(folder) == expected
        assert not list(folder.glob("checkpoints/.*"))
    assert caught >= 3
    logging.getLogger(__name__).info("%d kills, %d within a save", caught, half_saved)


def test_killed_within_a_save_ends_in_the_same_bits(
    toy: Any, training: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save dies after any of its files; the checkpoint before is found, the rest removed."""
    objective, loader = toy
    start = {n: t.clone() for n, t in objective.state_dict().items()}
    rng = torch.get_rng_state()
    expected = fit(objective, loader, training(), NullTracker(), tmp_path / "whole")
    whole = {n: t.clone() for n, t in objective.state_dict().items()}
    for written in (0, 1, 2):
        objective.load_state_dict(start)
        torch.set_rng_state(rng)
        folder = tmp_path / f"killed{written}"
        fit_until(objective, loader, training, folder, steps=10)
        partial = folder / "checkpoints/.step-00000015.partial"
        partial.mkdir()
        for name in (TENSORS, STATE, DIGESTS)[:written]:
            (partial / name).write_bytes(b"begun")
        assert fit(objective, loader, training(), NullTracker(), folder) == expected
        state = objective.state_dict()
        assert all(torch.equal(state[name], whole[name]) for name in whole)
        assert not partial.exists()


def fit_until(objective: nn.Module, loader: Any, training: Build, folder: Path, steps: int) -> None:
    """Train as a run of full length that is stopped after some steps."""

    class Stop(Exception):
        pass

    class Short:
        steps_per_epoch = loader.steps_per_epoch

        def iterate(self, start: int, stop: int) -> Any:
            yield from loader.iterate(start, steps)
            raise Stop

    with pytest.raises(Stop):
        fit(objective, Short(), training(), NullTracker(), folder)


def test_two_are_kept(toy: Any, training: Build, tmp_path: Path) -> None:
    fit(*toy, training(), NullTracker(), tmp_path)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000015", "step-00000020"]


@pytest.mark.parametrize("name", [TENSORS, STATE, DIGESTS])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damaged_checkpoint_is_passed_over(
    toy: Any,
    training: Build,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: str,
) -> None:
    objective, loader = toy
    expected = fit(objective, loader, training(), NullTracker(), tmp_path)
    whole = {n: t.clone() for n, t in objective.state_dict().items()}
    file = tmp_path / "checkpoints/step-00000020" / name
    content = bytearray(file.read_bytes())
    match damage:
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "flip":
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        case "gone":
            file.unlink()
    with caplog.at_level(logging.WARNING, "blip"):
        assert fit(objective, loader, training(), NullTracker(), tmp_path) == expected
    assert "step-00000020: damaged, going on from the one before" in caplog.text
    assert all(torch.equal(t, whole[n]) for n, t in objective.state_dict().items())


def test_all_damaged_begins_anew(toy: Any, training: Build, tmp_path: Path) -> None:
    objective, loader = toy
    start = {n: t.clone() for n, t in objective.state_dict().items()}
    rng = torch.get_rng_state()
    expected = fit(objective, loader, training(), NullTracker(), tmp_path)
    for file in tmp_path.glob("checkpoints/*/" + DIGESTS):
        file.write_text("{}")
    objective.load_state_dict(start)
    torch.set_rng_state(rng)
    assert fit(objective, loader, training(), NullTracker(), tmp_path) == expected


def test_another_run_is_refused(toy: Any, training: Build, tmp_path: Path) -> None:
    fit(*toy, training(), NullTracker(), tmp_path, identity="one")
    with pytest.raises(CheckpointError, match="another configuration or other data: remove it"):
        fit(*toy, training(), NullTracker(), tmp_path, identity="two")


def test_other_code_goes_on_with_a_warning(
    toy: Any, training: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objective, loader = toy
    optimizer = torch.optim.AdamW(objective.parameters())
    earlier = Checkpoints(tmp_path / "checkpoints", "")
    earlier._code = "of another time"
    earlier.save(20, objective, optimizer, {"points": [{"step": 20}], "pending": []})
    with caplog.at_level(logging.WARNING, "blip"):
        assert fit(objective, loader, training(), NullTracker(), tmp_path) == [{"step": 20}]
    assert "another version of this program" in caplog.text


def test_shared_and_frozen_tensors_are_stored_once(toy: Any, tmp_path: Path) -> None:
    objective, _ = toy
    checkpoints = Checkpoints(tmp_path, "")
    optimizer = torch.optim.AdamW(objective.parameters())
    checkpoints.save(1, objective, optimizer, None)
    header_size = int.from_bytes((tmp_path / "step-00000001" / TENSORS).read_bytes()[:8], "little")
    header = json.loads((tmp_path / "step-00000001" / TENSORS).read_bytes()[8 : 8 + header_size])
    stored = {name for name in header if name.startswith("objective.")}
    expected = {"first.weight", "first.bias", "second.weight", "second.bias", "ring", "frozen"}
    assert stored == {f"objective.{name}" for name in expected}


def test_full_disk_stops_with_one_message_and_keeps_the_last_checkpoint(
    toy: Any, training: Build, tmp_path: Path
) -> None:
    objective, loader = toy
    fit_until(objective, loader, training, tmp_path, steps=10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(DataError, match=r"step-00000015: cannot be written: .*too large"):
            fit(objective, loader, training(), NullTracker(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000010"]
    curve = fit(objective, loader, training(), NullTracker(), tmp_path)
    assert curve[-1]["step"] == 20


def test_unwritable_folder_is_one_message(toy: Any, training: Build, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(DataError, match="cannot be written"):
        fit(*toy, training(), NullTracker(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]
