"""The processes of one training run; every call also works without a process group."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist  # noqa: TID251
import torch.distributed.nn.functional as dist_nn  # noqa: TID251
from torch import Tensor

UNHURRIED = timedelta(minutes=10)


def world_size() -> int:
    """Give the number of processes; 1 without a process group."""
    return dist.get_world_size() if _initialised() else 1


def rank() -> int:
    """Give the number of this process; 0 without a process group."""
    return dist.get_rank() if _initialised() else 0


def all_gather(tensor: Tensor) -> Tensor:
    """Concatenate along axis 0 in rank order, without gradient; the shape is one everywhere."""
    if world_size() == 1:
        return tensor.detach()
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(gathered, tensor.detach().contiguous())
    return torch.cat(gathered)


def all_gather_with_grad(tensor: Tensor) -> Tensor:
    """Concatenate as `all_gather`; a part's gradient is summed over the processes that used it."""
    if world_size() == 1:
        return tensor
    return torch.cat(dist_nn.all_gather(tensor.contiguous()))  # type: ignore[no-untyped-call]


def all_gather_padded(rows: Tensor, value: int) -> Tensor:
    """Concatenate (B, L) rows over processes whose L differ, filled on the right to the longest."""
    if world_size() == 1:
        return rows.detach()
    lengths = all_gather(torch.tensor([rows.shape[1]], device=rows.device))
    missing = int(lengths.max()) - rows.shape[1]
    return all_gather(torch.nn.functional.pad(rows, (0, missing), value=value))


class Channel:
    """A way to tell each other small things, on the host, from a thread beside the training loop.

    It is a group of its own, so that its messages never mix with the loop's. All processes build it
    and call it in the same order; it serves one thread at a time. A process that is writing may be
    waited for as long as `UNHURRIED`.
    """

    def __init__(self) -> None:
        alone = world_size() == 1
        self._group = None if alone else dist.new_group(timeout=UNHURRIED, backend="gloo")

    def gather(self, value: Any) -> list[Any]:
        """Give what every process handed in, by rank.

        Raises:
            RuntimeError: Another process has ended.
        """
        if self._group is None:
            return [value]
        gathered = [None] * world_size()
        dist.all_gather_object(gathered, value, group=self._group)
        return gathered


@dataclass(frozen=True)
class Part:
    """What this process holds of a tensor.

    Attributes:
        local: The values, sharing the tensor's memory.
        offsets: Where they begin in the whole, by axis.
        stores: Whether it is this process that stores them: one of those that hold the same.
    """

    local: Tensor
    offsets: tuple[int, ...]
    stores: bool


def part_of(tensor: Tensor) -> Part:
    """Give this process's part of a tensor that is sharded (a DTensor, as FSDP2 makes), or whole.

    An axis is cut as `torch.chunk` cuts it: equal lengths, rounded up, and a shorter rest.
    """
    if not hasattr(tensor, "device_mesh"):
        return Part(tensor.detach(), (0,) * tensor.ndim, rank() == 0)
    mesh, stores = tensor.device_mesh, True
    offsets, lengths = [0] * tensor.ndim, list(tensor.shape)
    places = mesh.get_coordinate()
    for axis, placement in enumerate(tensor.placements):  # type: ignore[attr-defined]
        if not placement.is_shard():
            stores = stores and places[axis] == 0
            continue
        length = -(-lengths[placement.dim] // mesh.size(axis))
        begin = min(places[axis] * length, lengths[placement.dim])
        offsets[placement.dim] += begin
        lengths[placement.dim] = min(length, lengths[placement.dim] - begin)
    local = tensor.detach().to_local()  # type: ignore[attr-defined]
    assert list(local.shape) == lengths, (tensor.placements, local.shape)  # type: ignore[attr-defined]
    return Part(local, tuple(offsets), stores)


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
