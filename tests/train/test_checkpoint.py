"""Checkpoints: equal to the bit through any kill, whole or absent, damaged ones passed over."""

import logging
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import current_thread
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from blip.config import Training
from blip.data.loader import ahead
from blip.errors import CheckpointError, DataError
from blip.files import digest_file
from blip.tracker import NullTracker
from blip.train.checkpoint import DIGESTS, Checkpoints
from blip.train.saved import STATE
from blip.train.snapshot import TYPES, Snapshot
from blip.train.state import load_optimizer, load_random_states, optimizer_tensors, random_states
from blip.train.trainer import fit

Build = Callable[..., Training]

TENSORS = "rank-00000-of-00001.safetensors"


def save(checkpoints: Checkpoints, step: int, value: float = 0.0, **more: Any) -> None:
    """Save a tensor, down to the disk."""
    groups = {"objective": {"weight": torch.full((3,), value)}}
    checkpoints.save(step, groups, {"at": step}, own=random_states(), **more)
    checkpoints.finish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def until(condition: Callable[[], bool]) -> None:
    """Wait for the thread that writes."""
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("waited in vain")


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Limit the size of files, which fails a write as a full disk does; None lifts the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def test_all_damaged_is_an_error_and_stays_one(toy: Any, training: Build, tmp_path: Path) -> None:
    fit(*toy, training(), NullTracker(), tmp_path)
    for file in tmp_path.glob("checkpoints/*/" + DIGESTS):
        file.write_text("{}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged: bring one back"):
            fit(*toy, training(), NullTracker(), tmp_path)


def test_a_damaged_one_is_set_aside_until_the_run_has_passed_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "", keep=1)
    save(checkpoints, 10)
    checkpoints.keep = 2
    save(checkpoints, 20)
    (tmp_path / "step-00000020" / STATE).write_text("{}")
    checkpoints = Checkpoints(tmp_path, "", keep=1)
    saved = checkpoints.last()
    assert saved is not None
    assert saved.step == 10
    assert names(tmp_path) == ["step-00000010", "step-00000020.damaged"]
    save(checkpoints, 15)  # or it would be the damaged one that is kept
    assert names(tmp_path) == ["step-00000015", "step-00000020.damaged"]
    save(checkpoints, 20)
    assert names(tmp_path) == ["step-00000020"]


def test_another_run_is_refused(toy: Any, training: Build, tmp_path: Path) -> None:
    fit(*toy, training(), NullTracker(), tmp_path, identity="one")
    with pytest.raises(CheckpointError, match="another configuration or other data: remove it"):
        fit(*toy, training(), NullTracker(), tmp_path, identity="two")


def test_other_code_goes_on_with_a_warning(tmp_path: Path, caplog: Any) -> None:
    earlier = Checkpoints(tmp_path, "", keep=2)
    earlier._code = "of another time"
    save(earlier, 20)
    with caplog.at_level(logging.WARNING, "blip"):
        saved = Checkpoints(tmp_path, "", keep=2).last()
    assert saved is not None
    assert (saved.step, saved.progress) == (20, {"at": 20})
    assert "another version of this program" in caplog.text


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "", keep=2)
    for step in range(1, 7):
        save(checkpoints, step, best=2 if step < 6 else 5)
        saved = checkpoints.last()
        assert saved is not None
        assert saved.best == (2 if step < 6 else 5)
        if step == 5:
            assert names(tmp_path) == [f"step-0000000{i}" for i in (2, 4, 5)]
    assert names(tmp_path) == ["step-00000005", "step-00000006"]
    assert checkpoints.at(5).progress == {"at": 5}
    with pytest.raises(CheckpointError, match="step-00000002: missing or damaged"):
        checkpoints.at(2)


def test_what_travels_with_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "", keep=2, about={"config": {"seed": 7}})
    save(checkpoints, 1)
    saved = checkpoints.last()
    assert saved is not None
    assert saved.about == {"config": {"seed": 7}}
    assert saved.world_size == 1


def test_order_is_by_step_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save seems a day older than the one before; the newest files are the oldest steps."""
    clock = iter(range(10**9, 0, -86400))
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: float(next(clock)))
    checkpoints = Checkpoints(tmp_path, "", keep=3)
    for step in (1, 9, 10, 123456789):
        save(checkpoints, step)
        for path in tmp_path.rglob("*"):
            os.utime(path, (-step + 2**30, -step + 2**30))
    assert names(tmp_path) == ["step-00000009", "step-00000010", "step-123456789"]
    saved = checkpoints.last()
    assert saved is not None
    assert saved.step == 123456789


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_state_is_that_of_the_moment_of_saving(
    tmp_path: Path, monkeypatch: Any, device: str
) -> None:
    """What changes while it is being copied or written does not reach it."""
    weight, progress = torch.zeros(10**7, device=device), {"points": [1]}
    checkpoints = Checkpoints(tmp_path, "", keep=2)
    write = Snapshot.write

    def late(self: Snapshot, path: Path) -> str:
        weight.add_(1)
        progress["points"].append(2)
        return write(self, path)

    monkeypatch.setattr(Snapshot, "write", late)
    checkpoints.save(1, {"objective": {"weight": weight}}, progress, own={})
    weight.add_(1)
    checkpoints.finish()
    saved = checkpoints.last()
    assert saved is not None
    loaded = torch.ones(10**7, device=device)
    saved.load("objective", {"weight": loaded})
    assert not loaded.any()
    assert saved.progress == {"points": [1]}


def test_prepared_memory_is_used_by_every_save(tmp_path: Path) -> None:
    groups = {"objective": {"weight": torch.zeros(1000)}}
    checkpoints = Checkpoints(tmp_path, "", keep=2)
    checkpoints.prepare(groups, own=random_states())
    checkpoints.finish()
    place = checkpoints._snapshot._memory.data_ptr()
    for step in (1, 2):
        checkpoints.save(step, groups, None, own=random_states())
    checkpoints.finish()
    assert checkpoints._snapshot._memory.data_ptr() == place
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_one_save_at_a_time_and_the_context_waits_for_the_last(
    tmp_path: Path, monkeypatch: Any
) -> None:
    busy: list[int] = []
    write = Snapshot.write

    def slow(self: Snapshot, path: Path) -> str:
        busy.append(1)
        assert sum(busy) == 1
        time.sleep(0.05)
        busy.append(-1)
        return write(self, path)

    monkeypatch.setattr(Snapshot, "write", slow)
    with Checkpoints(tmp_path, "", keep=9) as checkpoints:
        for step in range(3):
            checkpoints.save(step, {}, None, own={})
        checkpoints.save(2, {}, None, own={})  # is there, or will be
    assert names(tmp_path) == [f"step-0000000{i}" for i in range(3)]
    assert len(busy) == 6
    with (
        pytest.raises(RuntimeError, match="of the loop"),
        Checkpoints(tmp_path, "", keep=9) as checkpoints,
    ):
        checkpoints.save(3, {}, None, own={})
        raise RuntimeError("of the loop")
    assert names(tmp_path) == [f"step-0000000{i}" for i in range(4)]


def test_threads_are_on_the_gpu_of_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would be on the first one, and take memory there."""
    taken: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda number: taken.append((current_thread().name, number))
    )
    checkpoints = Checkpoints(tmp_path, "", keep=9)
    checkpoints.prepare({}, own={})
    checkpoints.save(1, {}, None, own={})
    checkpoints.finish()
    assert taken == [("checkpoint", 3)] * 2
    assert list(ahead(str, range(3), num_workers=1)) == ["0", "1", "2"]
    assert taken[2:] == [("loader_0", 3)]


def test_a_fault_of_ours_is_raised_as_such(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Snapshot, "write", lambda self, path: 1 / 0)
    checkpoints = Checkpoints(tmp_path, "", keep=9)
    checkpoints.save(1, {}, None, own={})
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(2, {}, None, own={})


@pytest.mark.parametrize("dtype", list(TYPES), ids=str)
def test_every_type_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    """Ours are files of safetensors: its own reader is the judge."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (24,), generator=generator, dtype=torch.uint8)
    tensors = {
        "vector": bits.view(dtype),
        "matrix": bits.view(dtype).reshape(-1, 3).T,  # not contiguous
        "scalar": bits.view(dtype)[0],
        "empty": torch.empty(0, 5, dtype=dtype),
        "odd": torch.ones(3, dtype=torch.uint8),
    }
    snapshot = Snapshot()
    snapshot.take({"a": {"long": torch.ones(1000)}}, {})  # memory to be used again
    snapshot.take({"objective": tensors}, {})
    digest = snapshot.write(tmp_path / "file")
    assert digest == digest_file(tmp_path / "file")
    assert snapshot.num_bytes == (tmp_path / "file").stat().st_size
    read = safetensors.torch.load_file(tmp_path / "file")
    for name, tensor in tensors.items():
        found = read[f"objective.{name}"]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor)


def test_shared_and_frozen_tensors_are_stored_once_and_all_come_back(
    toy: Any, tmp_path: Path
) -> None:
    objective, _ = toy
    checkpoints = Checkpoints(tmp_path, "", keep=2)
    state = objective.state_dict()
    expected = {name: tensor.clone() for name, tensor in state.items()}
    checkpoints.save(1, {"objective": state}, None, own=random_states())
    checkpoints.finish()
    stored = safetensors.torch.load_file(tmp_path / "step-00000001" / TENSORS).keys()
    once = {"first.weight", "first.bias", "second.weight", "second.bias", "ring", "frozen"}
    assert stored == {*(f"objective.{name}" for name in once), "own.cpu"}
    saved = checkpoints.last()
    assert saved is not None
    assert set(saved.names("objective")) == set(state)
    with torch.no_grad():
        for tensor in state.values():
            tensor.fill_(9)
    saved.load("objective", state)
    assert all(torch.equal(objective.state_dict()[name], expected[name]) for name in expected)


def test_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "", keep=2)
    save(checkpoints, 1)
    saved = checkpoints.last()
    assert saved is not None
    three = torch.zeros(3)
    for wrong, message in (
        ({"weight": three, "bias": three}, r"it lacks objective\.bias \(1 such in all\)"),
        ({}, r"it has objective\.weight"),
        ({"weight": torch.zeros(4)}, r"objective\.weight is \(3,\), not \(4,\)"),
        ({"weight": three.double()}, r"is torch\.float32, not torch\.float64"),
    ):
        with pytest.raises(CheckpointError, match=f"another model: .*{message}"):
            saved.load("objective", wrong)


def test_optimizer_and_generators_go_on_in_the_same_bits(toy: Any, tmp_path: Path) -> None:
    objective, loader = toy
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)

    def step(optimizer: torch.optim.Optimizer, at: int) -> Tensor:
        loss: Tensor = objective(next(loader.iterate(at, at + 1)), None).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    checkpoints = Checkpoints(tmp_path, "", keep=2)
    step(optimizer, 0)
    groups = {"objective": objective.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    checkpoints.save(1, groups, None, own=random_states())
    expected = [step(optimizer, at) for at in (1, 2)]
    checkpoints.finish()
    saved = checkpoints.last()
    assert saved is not None
    again = torch.optim.AdamW(objective.parameters(), fused=True)
    saved.load("objective", objective.state_dict())
    load_optimizer(again, saved)
    load_random_states(saved)
    assert [step(again, at) for at in (1, 2)] == expected


def test_a_process_that_was_not_there_begins_with_a_state_of_its_own(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "", keep=2)
    drawn = []
    for step in (1, 1, 2):
        checkpoints.save(step, {}, None, own={})
        checkpoints.finish()
        torch.manual_seed(len(drawn))
        load_random_states(checkpoints.at(step))
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1] != drawn[2]


def test_full_disk_goes_on_training_and_the_next_save_tries_again(
    toy: Any,
    training: Build,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    file_limit: Callable[[int], None],
) -> None:
    objective, loader = toy
    folder = tmp_path / "run"
    start = {n: t.clone() for n, t in objective.state_dict().items()}
    rng = torch.get_rng_state()
    expected = fit(objective, loader, training(), NullTracker(), tmp_path / "whole")
    whole = {n: t.clone() for n, t in objective.state_dict().items()}
    objective.load_state_dict(start)
    torch.set_rng_state(rng)
    left: list[list[str]] = []

    def full_for_a_while() -> Iterator[Any]:
        for step, batch in enumerate(loader.iterate(0, 20)):
            if step == 9:
                until(lambda: names(folder / "checkpoints") == ["step-00000005"])
                file_limit(3000)  # the save of step 10 fails
            if step == 14:
                until(lambda: "cannot be written" in caplog.text)
                left.append(names(folder / "checkpoints"))
                file_limit(resource.RLIM_INFINITY)
            yield batch

    class Full:
        steps_per_epoch = loader.steps_per_epoch
        iterate = staticmethod(lambda start, stop: full_for_a_while())

    with caplog.at_level(logging.WARNING, "blip"):
        assert fit(objective, Full(), training(), NullTracker(), folder) == expected
    assert "step-00000010: cannot be written: File too large: training goes on" in caplog.text
    assert "the last checkpoint is that of step 5; make room" in caplog.text
    assert left == [["step-00000005"]]
    assert names(folder / "checkpoints") == ["step-00000015", "step-00000020"]
    assert all(torch.equal(t, whole[n]) for n, t in objective.state_dict().items())


def test_full_disk_at_the_end_is_one_message_and_keeps_the_last_checkpoint(
    toy: Any, training: Build, tmp_path: Path, file_limit: Callable[[int], None]
) -> None:
    objective, loader = toy
    fit_until(objective, loader, training, tmp_path, steps=10)
    file_limit(3000)
    with pytest.raises(
        DataError,
        match=r"step-00000020: cannot be written: File too large: the last checkpoint is that of "
        "step 10; make room and run the same command again",
    ):
        fit(objective, loader, training(), NullTracker(), tmp_path)
    file_limit(resource.RLIM_INFINITY)
    assert names(tmp_path / "checkpoints") == ["step-00000005", "step-00000010"]
    curve = fit(objective, loader, training(), NullTracker(), tmp_path)
    assert curve[-1]["step"] == 20


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, **more: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    checkpoints = Checkpoints(tmp_path, "", keep=1)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING, "blip"):
        save(checkpoints, 1)
        save(checkpoints, 2)
    assert "old checkpoints cannot be removed: [Errno 13] Permission denied" in caplog.text
    assert checkpoints.at(2).step == 2


def test_a_disk_that_is_too_small_is_not_filled_first(tmp_path: Path, monkeypatch: Any) -> None:
    checkpoints = Checkpoints(tmp_path, "", keep=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    monkeypatch.setattr(Snapshot, "write", lambda self, path: pytest.fail("writes"))
    with pytest.raises(DataError, match=r"[\d,]+ bytes are needed, 100 are free: there is no"):
        save(checkpoints, 1)
    assert names(tmp_path) == []


def test_unwritable_folder_is_one_message_before_training(
    toy: Any, training: Build, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(DataError, match="checkpoints: cannot be written: File exists"):
        fit(*toy, training(), NullTracker(), tmp_path)
    assert names(tmp_path) == ["checkpoints"]
