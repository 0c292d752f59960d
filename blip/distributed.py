"""The processes of one training run, as torchrun starts them; all works without any, too.

Tensors on the host are exchanged by gloo, those of a GPU by NCCL. Whoever waits for a process that
has ended, or does not answer for `PATIENCE`, gets `LostPeerError`: see `processes`.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist  # noqa: TID251
import torch.distributed.nn.functional as dist_nn  # noqa: TID251
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh  # noqa: TID251
from torch.distributed.distributed_c10d import PrefixStore, Store  # noqa: TID251
from torch.distributed.rendezvous import rendezvous  # noqa: TID251
from torch.nn.parallel import DistributedDataParallel

from blip.errors import ConfigError, LostPeerError

T = TypeVar("T")

Sharding = Literal["ddp", "fsdp"]

PATIENCE = timedelta(seconds=40)  # for a process that neither answers nor has ended
ROLL_CALL = 5.0  # seconds for the others to say that they are still there
JOINING = timedelta(minutes=10)  # for all processes to start
UNHURRIED = timedelta(minutes=10)  # for one that writes


def world_size() -> int:
    """Give the number of processes; 1 without a process group."""
    return dist.get_world_size() if _initialised() else 1


def rank() -> int:
    """Give the number of this process; 0 without a process group."""
    return dist.get_rank() if _initialised() else 0


def launched() -> bool:
    """Tell whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Be one of the processes that torchrun started; nothing where this is the only one.

    Raises:
        ConfigError: There are more processes on this machine than GPUs.
        LostPeerError: Another process ended, or hung, while this one waited for it.
    """
    if not launched():
        yield
        return
    if torch.cuda.is_available():
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    store, number, size = next(rendezvous("env://", timeout=JOINING))
    # Each restart of torchrun is another group: what is left of the last one is not read.
    store = PrefixStore(f"run-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if _is_of_exchange(error):
            # torchrun, too, has noticed, and tells the others to leave: not before the last word.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise LostPeerError(_roll_call(store, number, size)) from error
        raise
    finally:
        dist.destroy_process_group()


def _take_gpu(number: int) -> None:
    count = torch.cuda.device_count()
    if number >= count:
        raise ConfigError(
            f"process {number} of this machine has no GPU: there are {count}, one for each process: "
            f"--nproc-per-node {count}"
        )
    torch.cuda.set_device(number)


def gpu_of_this_thread() -> Callable[[], None]:
    """Give what a thread that this one starts must call first to be on the same GPU.

    It would begin on the first one of the machine, and to pin memory or to wait for another from
    there takes memory of it.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())


def _is_of_exchange(error: RuntimeError) -> bool:
    """Tell an error of the exchange between processes from any other; gloo's have no type."""
    words = "gloo", "pair closure", "Timed out waiting", "NCCL"
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _roll_call(store: Store, number: int, size: int) -> str:
    """Ask who is still there, and say who is not."""
    missing = list(range(size))
    try:
        store.set(f"here-{number}", "")
        deadline = time.monotonic() + ROLL_CALL
        while missing and time.monotonic() < deadline:
            time.sleep(0.1)
            missing = [other for other in missing if not store.check([f"here-{other}"])]
    except dist.DistError:
        missing = [0]  # whose machine holds the store
    who = ", ".join(map(str, missing)) or "another one, which has come back,"
    return (
        f"process {number} of {size} stops: it has lost process {who}, which ended or hangs; "
        "what is saved is whole, and the same command goes on from it"
    )


def all_gather(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Concatenate each along axis 0 in rank order, without gradient.

    The tensors have equally many rows, which may differ between processes.
    """
    detached = tuple(tensor.detach() for tensor in tensors)
    if world_size() == 1:
        return detached
    counts = _row_counts(len(tensors[0]))
    return tuple(_cut(_gather(_padded(t, max(counts))), counts) for t in detached)


def all_gather_with_grad(tensor: Tensor) -> Tensor:
    """Concatenate as `all_gather`; a part's gradient is summed over the processes that used it."""
    if world_size() == 1:
        return tensor
    counts = _row_counts(len(tensor))
    padded = _padded(tensor, max(counts)).contiguous()
    return _cut(dist_nn.all_gather(padded), counts)  # type: ignore[no-untyped-call]


def all_gather_padded(rows: Tensor, value: int) -> Tensor:
    """Concatenate (B, L) rows over processes whose L differ, filled on the right to the longest."""
    if world_size() == 1:
        return rows.detach()
    missing = max(_row_counts(rows.shape[1])) - rows.shape[1]
    return all_gather(nn.functional.pad(rows, (0, missing), value=value))[0]


def rows_before(count: int) -> int:
    """Give where this process's rows begin in what `all_gather` gives, of which it has `count`."""
    return sum(_row_counts(count)[: rank()])


def total(tensor: Tensor) -> Tensor:
    """Give the sum over processes, without gradient."""
    summed = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed


def mean(values: list[float]) -> list[float]:
    """Give the means over processes."""
    if world_size() == 1:
        return values
    return (total(torch.tensor(values, dtype=torch.float64)) / world_size()).tolist()


def ask(says: Callable[[], bool]) -> Callable[[], bool]:
    """Ask all processes a question while this one computes; what comes back waits for the answer.

    Returns:
        Tells whether any said yes: the same in all processes.
    """
    if world_size() == 1:
        return says
    flag = torch.tensor([float(says())])
    work = dist.all_reduce(flag, async_op=True)

    def answer() -> bool:
        assert work is not None
        work.wait()
        return bool(flag)

    return answer


def broadcast(value: Any) -> Any:
    """Give what the first process handed in; the others wait for it, however long it takes."""
    if world_size() == 1:
        return value
    box = [value]
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    dist.broadcast_object_list(box, src=0, group=patient)
    dist.destroy_process_group(patient)
    return box[0]


def wrap(objective: nn.Module, sharding: Sharding, units: Iterable[nn.Module]) -> nn.Module:
    """Make the processes one: equal weights from the first, gradients averaged.

    - `ddp`: every process holds everything. Every parameter has a gradient in every step, so that
      none is searched for; buffers are not sent around later: the queue is equal by construction.
    - `fsdp`: parameters, gradients and the optimizer's moments are cut up; the whole of a unit is
      there while it works, that of all else from the forward pass to the end of the backward pass.

    Args:
        objective: With all parameters and buffers on the device, or on the host for `fsdp`.
        sharding: How.
        units: Its modules that `fsdp` gathers one at a time.

    Returns:
        What to call instead of the objective; itself where there is one process.
    """
    if world_size() == 1:
        return objective
    if sharding == "ddp":
        return DistributedDataParallel(
            objective, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
    # Here, as importing it takes a second.
    from torch.distributed.fsdp import fully_shard  # noqa: TID251

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for tensor in (*objective.parameters(), *objective.buffers()):
        on_device = tensor.data.to(device)
        dist.broadcast(on_device, src=0)
        tensor.data.copy_(on_device)
    mesh = init_device_mesh(device, (world_size(),))
    # Scalars (the temperature) cannot be cut up: every process holds them.
    scalars = {p for p in objective.parameters() if p.ndim == 0}
    for scalar in scalars:
        scalar.data = scalar.data.to(device)
        if scalar.requires_grad:
            scalar.register_post_accumulate_grad_hook(_average_gradient)  # type: ignore[no-untyped-call]
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(objective, mesh=mesh, ignored_params=scalars)
    return objective


def _average_gradient(parameter: Tensor) -> None:
    """Average the gradient so far: what was averaged before stays as it is."""
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= world_size()


def average_gradients(wrapped: nn.Module, now: bool) -> None:
    """Say whether the next pass averages gradients over processes, or adds its own to them."""
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.require_backward_grad_sync = now
    elif world_size() > 1:
        wrapped.set_requires_gradient_sync(now)  # type: ignore[operator]


def release(objective: nn.Module) -> None:
    """Let go of what a forward pass without a backward pass has left gathered (`fsdp`)."""
    for module in objective.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


def is_cut(tensor: Tensor) -> bool:
    """Tell whether a process holds a part of a tensor alone: a DTensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Give this process's part of a tensor that is cut up, sharing its memory; else the tensor."""
    return tensor.to_local() if is_cut(tensor) else tensor  # type: ignore[attr-defined]


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Give the norm of all tensors together, of which some may be cut up: a scalar."""
    groups: dict[bool, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(is_cut(tensor), []).append(tensor)
    norms = [_whole(nn.utils.get_total_norm(group)) for group in groups.values()]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if is_cut(tensor) else tensor  # type: ignore[attr-defined]


def unwrap(objective: nn.Module) -> None:
    """Put an objective together again on the host, to be written; it trains no more."""
    put_together: dict[Tensor, nn.Parameter] = {}
    for module in objective.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if is_cut(parameter):
                if parameter not in put_together:
                    full = _whole(parameter.detach()).cpu()
                    put_together[parameter] = nn.Parameter(full, parameter.requires_grad)
                setattr(module, name, put_together[parameter])


def _row_counts(count: int) -> list[int]:
    """Give what every process hands in; by the host alone, so that no GPU is waited for."""
    if world_size() == 1:
        return [count]
    counts = torch.empty(world_size(), dtype=torch.int64)
    dist.all_gather_single(counts, torch.tensor([count]))
    return counts.tolist()


def _padded(rows: Tensor, count: int) -> Tensor:
    missing = count - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def _gather(rows: Tensor) -> list[Tensor]:
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return gathered


def _cut(gathered: Iterable[Tensor], counts: list[int]) -> Tensor:
    return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])


class Channel:
    """A way to tell each other small things, on the host, from a thread beside the training loop.

    It is a group of its own, so that its messages never mix with the loop's. All processes build it
    and call it in the same order; it serves one thread at a time.

    Args:
        patience: How long to wait for a process that has not ended: it may be writing.
    """

    def __init__(self, patience: timedelta = UNHURRIED) -> None:
        alone = world_size() == 1
        self._group = None if alone else dist.new_group(timeout=patience, backend="gloo")

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


class Team:
    """The processes that do a share of some work each, and all need what comes of the whole.

    All build it at the same place. Whoever is slower is waited for.
    """

    def __init__(self) -> None:
        self._channel = Channel(timedelta(days=1))

    def share(self, count: int, batch_size: int) -> range:
        """Give this process's rows, of `count`: neighbours, in batches as one process makes them."""
        batches = -(-count // batch_size)
        first, last = (batches * r // world_size() for r in (rank(), rank() + 1))
        return range(min(first * batch_size, count), min(last * batch_size, count))

    def gather(self, mine: Sequence[T]) -> list[T]:
        """Give what came of all shares, in order.

        Raises:
            RuntimeError: Another process has ended.
        """
        return [item for share in self._channel.gather(list(mine)) for item in share]


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
    if not is_cut(tensor):
        return Part(tensor.detach(), (0,) * tensor.ndim, rank() == 0)
    mesh, stores = tensor.device_mesh, True  # type: ignore[attr-defined]
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
