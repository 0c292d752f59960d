"""The processes of one training run; every call also works without a process group."""

import torch
import torch.distributed as dist  # noqa: TID251
import torch.distributed.nn.functional as dist_nn  # noqa: TID251
from torch import Tensor


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


def mean(values: list[float]) -> list[float]:
    """Give the means over processes."""
    if world_size() == 1:
        return values
    summed = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(summed)
    return (summed / world_size()).tolist()


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
