"""Checkpoints of two processes: sharded or not, agreed on by both, read by any number."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from blip.train.checkpoint import Checkpoints
from tests.train import two_writers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, after one process has left a checkpoint for them to read."""
    root = tmp_path_factory.mktemp("two")
    module, optimizer = two_writers.start(1, sharded=False)
    two_writers.train(module, optimizer, range(3))
    checkpoints = Checkpoints(root / "one", "run", keep=2)
    groups = two_writers.groups(module, optimizer)
    checkpoints.save(3, groups, None, own={"cpu": torch.get_rng_state()})
    checkpoints.finish()
    torch.save(two_writers.everything(module, optimizer), root / "one.expected")
    command = [sys.executable, two_writers.__file__]
    processes = [subprocess.Popen([*command, str(rank), root]) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return root


@pytest.fixture(scope="module")
def outcome(root: Path) -> dict[str, Any]:
    """What the first process, which outlives the other, came to."""
    return json.loads((root / "outcome.0").read_text())


@pytest.mark.parametrize("kind", ["sharded", "replicated"])
def test_two_processes_go_on_in_the_same_bits(outcome: dict[str, Any], kind: str) -> None:
    assert outcome[kind]


def test_each_writes_its_shards_and_what_is_equal_is_written_once(root: Path) -> None:
    sizes = {}
    for kind in ("sharded", "replicated"):
        for rank in (0, 1):
            path = root / kind / f"step-00000003/rank-{rank:05}-of-00002.safetensors"
            read = safetensors.torch.load_file(path)
            weight = read.get("objective.0.weight")
            sizes[kind, rank] = None if weight is None else list(weight.shape)
            assert "own.cpu" in read
            # What FSDP does not shard: written by the first alone.
            assert ("objective.1.running_mean" in read) == (rank == 0)
    assert sizes == {
        ("sharded", 0): [4, 5],
        ("sharded", 1): [3, 5],
        ("replicated", 0): [7, 5],
        ("replicated", 1): None,
    }


@pytest.mark.parametrize("kind", ["sharded", "replicated"])
def test_one_process_reads_what_two_wrote(root: Path, kind: str, caplog: Any) -> None:
    module, optimizer = two_writers.start(2, sharded=False)
    with caplog.at_level(logging.WARNING, "blip"):
        two_writers.go_on(Checkpoints(root / kind, "run", keep=2).last(), module, optimizer)
    assert "written by 2 processes, read by 1: they go on with the same batches" in caplog.text
    expected = torch.load(root / f"{kind}.expected")
    found = two_writers.everything(module, optimizer)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_two_processes_read_what_one_wrote(outcome: dict[str, Any]) -> None:
    assert len(outcome["reshards"]) > 10
    assert all(outcome["reshards"])


def test_a_process_that_cannot_write_fails_the_save_of_all(outcome: dict[str, Any]) -> None:
    message, *left = outcome["fails"]
    assert "step-00000002: cannot be written: File too large: the last" in message
    assert left == ["step-00000001"]


def test_all_fall_back_to_the_same_checkpoint(outcome: dict[str, Any]) -> None:
    assert outcome["falls_back"] == [1, 1]


def test_a_dead_process_completes_no_checkpoint(outcome: dict[str, Any]) -> None:
    message, *left = outcome["dies"]
    assert "gloo" in message  # as any lost process is told
    assert left == [".step-00000002.partial", "step-00000001"]
