"""One of two processes that save and restore: `python two_writers.py RANK FOLDER`.

For test_sharded_checkpoint.py, which finds in FOLDER what was written and, in outcome.RANK, what
came of each part.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist  # noqa: TID251
from torch import Tensor, nn

from blip.errors import CheckpointError, DataError
from blip.train.checkpoint import Checkpoints
from blip.train.saved import Saved
from blip.train.snapshot import Snapshot
from blip.train.state import load_optimizer, load_random_states, optimizer_tensors, random_states

RANKS = 2


def net() -> nn.Module:
    """Give layers whose sizes two does not divide, one with a single row, and a buffer."""
    layers = [nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.4), nn.Linear(7, 1)]
    return nn.Sequential(*layers)


def start(seed: int, sharded: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = net()
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh  # noqa: TID251
        from torch.distributed.fsdp import fully_shard  # noqa: TID251

        fully_shard(module, mesh=init_device_mesh("cpu", (RANKS,)))
    return module, torch.optim.AdamW(module.parameters(), lr=0.01, fused=not sharded)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        module(torch.randn(6, 5, generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def groups(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    return {"objective": module.state_dict(), "optimizer": optimizer_tensors(optimizer)}


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give plain copies of tensors, whole ones of sharded ones."""
    full = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in tensors.items()}
    return {name: tensor.detach().clone() for name, tensor in full.items()}


def everything(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    named = {f"{g}.{n}": t for g, m in groups(module, optimizer).items() for n, t in m.items()}
    return whole(named)


def go_on(saved: Saved | None, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    assert saved is not None
    saved.load("objective", module.state_dict())
    load_optimizer(optimizer, saved)
    load_random_states(saved)


def resumes(rank: int, folder: Path, sharded: bool) -> bool:
    """Train, save, train on; and again from the checkpoint: whether both end in the same bits."""
    module, optimizer = start(1, sharded)
    torch.manual_seed(100 + rank)  # each process has its own generator
    train(module, optimizer, range(3))
    checkpoints = Checkpoints(folder, "run", keep=2)
    expected = everything(module, optimizer)
    if rank == 0:
        torch.save(expected, f"{folder}.expected")
    checkpoints.save(3, groups(module, optimizer), {"rank": rank}, own=random_states())
    train(module, optimizer, range(3, 6))  # while it is being written
    checkpoints.finish()
    ended = everything(module, optimizer)
    module, optimizer = start(2, sharded)
    saved = Checkpoints(folder, "run", keep=2).last()
    go_on(saved, module, optimizer)
    assert saved is not None
    assert (saved.progress, saved.world_size) == ({"rank": 0}, RANKS)
    train(module, optimizer, range(3, 6))
    again = everything(module, optimizer)
    return all(torch.equal(ended[name], again[name]) for name in ended)


def reshards(rank: int, folder: Path) -> list[bool]:
    """Read what one process wrote, here in shards."""
    module, optimizer = start(2, sharded=True)
    go_on(Checkpoints(folder, "run", keep=2).last(), module, optimizer)
    found = everything(module, optimizer)
    expected = torch.load(f"{folder}.expected")
    same = [torch.equal(found[name], tensor) for name, tensor in expected.items()]
    return [*same, len(same) == len(found)]


def fails_together(rank: int, folder: Path) -> list[str]:
    """The second process cannot write: both say so, and both go on from what there was."""
    checkpoints = Checkpoints(folder, "run", keep=2)
    tensors = {"objective": {"weight": torch.zeros(4)}}
    checkpoints.save(1, tensors, None, own=random_states())
    checkpoints.finish()
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    checkpoints.save(2, tensors, None, own=random_states())
    message = refusal(checkpoints.finish, DataError)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    return [message, *sorted(path.name for path in folder.iterdir())]


def falls_back_together(rank: int, folder: Path) -> list[int]:
    """Whichever file is damaged, both go on from the same checkpoint."""
    steps = []
    for number, name in enumerate(("rank-00000-of-00002", "rank-00001-of-00002")):
        checkpoints = Checkpoints(folder / str(number), "run", keep=2)
        for step in (1, 2):
            checkpoints.save(step, {}, None, own=random_states())
        checkpoints.finish()
        truncate(rank, folder / str(number) / f"step-00000002/{name}.safetensors")
        saved = Checkpoints(folder / str(number), "run", keep=2).last()
        assert saved is not None
        steps.append(saved.step)
    truncate(rank, folder / "1/step-00000001/state.json")
    refusal(Checkpoints(folder / "1", "run", keep=2).last, CheckpointError)
    return steps


def dies(rank: int, folder: Path) -> list[str]:
    """The second process dies in the middle of a save: the first says so; it is not completed."""
    checkpoints = Checkpoints(folder, "run", keep=2)
    checkpoints.save(1, {}, None, own=random_states())
    checkpoints.finish()
    if rank == 1:
        Snapshot.write = lambda self, path: os._exit(0)  # type: ignore[method-assign]
    checkpoints.save(2, {}, None, own=random_states())
    message = refusal(checkpoints.finish, RuntimeError)
    return [message, *sorted(path.name for path in folder.iterdir())]


def truncate(rank: int, path: Path) -> None:
    dist.barrier()
    if rank == 0:
        os.truncate(path, 100)
    dist.barrier()


def refusal(work: Callable[[], Any], kind: type[Exception]) -> str:
    try:
        work()
    except kind as error:
        return str(error)
    raise AssertionError("was not refused")


def main(rank: int, root: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{root}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    outcome = {
        "sharded": resumes(rank, root / "sharded", sharded=True),
        "replicated": resumes(rank, root / "replicated", sharded=False),
        "reshards": reshards(rank, root / "one"),
        "fails": fails_together(rank, root / "fails"),
        "falls_back": falls_back_together(rank, root / "falls_back"),
        "dies": dies(rank, root / "dies"),
    }
    (root / f"outcome.{rank}").write_text(json.dumps(outcome))
    os._exit(0)  # the group cannot be left: one of two is gone


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
