"""One process alone, and two by gloo; the recorded steps of two are in golden/test_two_processes.py."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist  # noqa: TID251
from hypothesis import given
from hypothesis import strategies as st

from blip import distributed
from blip.errors import ConfigError
from tests.ports import free_port

RANKS = 2


def test_without_a_process_group_a_process_is_alone():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    rows = torch.randn(3, 2, requires_grad=True)
    (gathered,) = distributed.all_gather(rows)
    assert torch.equal(gathered, rows)
    assert not gathered.requires_grad
    assert distributed.all_gather_with_grad(rows) is rows
    assert torch.equal(distributed.all_gather_padded(rows, 0), rows)
    assert distributed.rows_before(3) == 0
    assert torch.equal(distributed.total(rows), rows)
    assert distributed.mean([1.0, 2.0]) == [1.0, 2.0]
    assert distributed.broadcast("word") == "word"
    raised = [False]
    answer = distributed.ask(lambda: raised[0])
    raised[0] = True
    assert answer()  # what comes while the step computes counts
    objective = torch.nn.Linear(2, 2)
    assert distributed.wrap(objective, "fsdp", []) is objective
    with distributed.processes():
        assert distributed.world_size() == 1


def test_a_process_without_a_gpu_is_told_how_many_there_are(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: 1 / 0)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for number in "0", "1":
        monkeypatch.setenv("LOCAL_RANK", number)
        with pytest.raises(ZeroDivisionError), distributed.processes():
            pass
    assert taken == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    told = "there are 2, one for each process: --nproc-per-node 2"
    with pytest.raises(ConfigError, match=told), distributed.processes():
        pass


def start(job: str, folder: Path, ranks: int = RANKS, **environment: str) -> list[Any]:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    script = Path(__file__).with_name("two_processes.py")
    return [
        subprocess.Popen(
            [sys.executable, script, job, folder],
            env={**os.environ, **place, **environment, "RANK": str(r), "LOCAL_RANK": str(r)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(ranks)
    ]


def outcomes(job: str, folder: Path, ranks: int = RANKS) -> list[Any]:
    processes = start(job, folder, ranks)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(errors)
    return [torch.load(folder / f"{job}.{rank}") for rank in range(ranks)]


def worst(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[n].double() - theirs[n].double()).abs().max()) for n in ours)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    (alone,) = outcomes("steps", tmp_path, ranks=1)
    first, second = outcomes("steps", tmp_path)

    assert first["exchange"].pop("told") == second["exchange"].pop("told") == "by 0"
    gradients = [each["exchange"].pop("gradient").flatten().tolist() for each in (first, second)]
    assert gradients == [[0, 2, 4], [6, 8]]  # each row was used by both
    assert [each["exchange"].pop("before") for each in (first, second)] == [0, 3]
    for each in (first, second):
        rows, more = each["exchange"]["rows"]
        assert rows.flatten().tolist() == [0, 1, 2, 10, 11]
        assert torch.equal(more, rows + 1)
        assert each["exchange"]["padded"].tolist() == [[0, 0, 9], [1, 1, 1]]
        assert each["exchange"]["total"].tolist() == [2.0, 1.0]
        assert each["exchange"]["mean"] == [1.0, 0.5]
        assert each["exchange"]["asked"] == [True, True, False]

    for way in first.keys() - {"exchange"}:  # weights, twin, queue
        assert worst(first[way], second[way]) == 0, way
    # Adam makes much of little: the gradients agree far better than what it does with them.
    for way in [way for way in first if way.startswith("captioning")]:
        expected = alone["captioning average" if "average" in way else "captioning"]
        assert worst(first[way], expected) < 5e-5, way  # measured: 2.3e-5, of rates of 1e-3
        # measured: 3e-7
        torch.testing.assert_close(first[way]["norms"], expected["norms"], rtol=1e-6, atol=0)
    for task in ("pretrain", "retrieval"):
        assert worst(first[f"{task} fsdp"], first[task]) < 2e-5, task  # measured: 7.6e-6
    assert worst(first["pretrain recomputed"], first["pretrain"]) == 0


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path: Path) -> None:
    first, second = outcomes("left", tmp_path)
    for ways in zip(first.values(), second.values(), strict=True):
        for each in ways:
            assert each["code"] == 143
            assert each["names"][-1] in ("step-00000006", "step-00000007")
            assert torch.equal(each["again"]["weight"], ways[0]["whole"]["weight"])
            assert each["again"]["chance"] == each["whole"]["chance"]
            # Stopped between two points, whose mean is taken in another order then: 1e-16 or so.
            for point, expected in zip(
                each["again"]["curve"], ways[0]["whole"]["curve"], strict=True
            ):
                assert point == pytest.approx(expected, rel=1e-12)
        assert ways[0]["names"] == ways[1]["names"]
        assert ways[0]["whole"]["chance"] != ways[1]["whole"]["chance"]
    weights = [first[sharding]["whole"]["weight"] for sharding in ("ddp", "fsdp")]
    torch.testing.assert_close(*weights, atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["killed", "killed first", "hung", "deserted"])
def test_a_process_that_is_lost_ends_the_others(tmp_path: Path, job: str) -> None:
    processes = start(job, tmp_path, PATIENCE="10")
    gone = 0 if job == "killed first" else 1
    survivor, lost = processes[1 - gone], processes[gone]
    try:
        _, error = survivor.communicate(timeout=300)
    finally:
        lost.kill()
        lost.wait()
    assert survivor.returncode == 75
    assert f"process {1 - gone} of 2 stops: it has lost process {gone}, which ended or" in error
    assert "what is saved is whole, and the same command goes on from it" in error
    (seconds,) = re.findall(r"^([\d.]+) process", error, re.MULTILINE)  # torch may have a word, too
    assert float(seconds) < 60  # as the README says; the store's own patience is half an hour


def test_alone_a_process_holds_all_and_hears_itself():
    tensor = torch.randn(3, 2, requires_grad=True)
    part = distributed.part_of(tensor)
    assert (part.offsets, part.stores) == ((0, 0), True)
    assert part.local.data_ptr() == tensor.data_ptr()
    assert not part.local.requires_grad
    assert distributed.Channel().gather("word") == ["word"]
    team = distributed.Team()
    assert team.share(10, 3) == range(10)
    assert team.gather([1, 2]) == [1, 2]


@given(st.integers(0, 50), st.integers(1, 9), st.integers(1, 8))
def test_a_team_shares_whole_batches(count: int, batch_size: int, ranks: int) -> None:
    team, shares = distributed.Team(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: ranks)
        for rank in range(ranks):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append(team.share(count, batch_size))
    assert [row for share in shares for row in share] == list(range(count))
    assert all(share.start % batch_size == 0 for share in shares if share)
    sizes = [-(-len(share) // batch_size) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shape", [(7, 3), (8, 4), (1, 5), (2, 1)])
@pytest.mark.parametrize("how", ["s0", "s1", "r s0", "s0 r", "s0 s1", "s0 s0", "r r"])
def test_the_parts_of_all_processes_are_the_whole(shape, how):
    """Every element is stored once, whatever the mesh of 4 processes."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: TID251
    from torch.testing._internal.distributed.fake_pg import FakeStore

    whole = torch.arange(shape[0] * shape[1]).reshape(shape)
    placements = [Replicate() if axis == "r" else Shard(int(axis[1])) for axis in how.split()]
    found = torch.zeros(shape, dtype=torch.int64)
    times = torch.zeros(shape, dtype=torch.int64)
    for rank in range(4):
        # A group of one process that believes in the others: layouts need no exchange.
        dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
        try:
            sizes = (4,) if len(placements) == 1 else (2, 2)
            mesh = dist.init_device_mesh("cpu", sizes)
            tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            part = distributed.part_of(tensor)
        finally:
            dist.destroy_process_group()
        lengths = zip(part.offsets, part.local.shape, strict=True)
        place = tuple(slice(offset, offset + length) for offset, length in lengths)
        assert torch.equal(part.local, whole[place])
        if part.stores:
            found[place] = part.local
            times[place] += 1
    assert torch.equal(found, whole)
    assert (times == 1).all()
