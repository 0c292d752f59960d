"""Measuring ways to one result: equality first, then time, memory and arithmetic in one run."""

import contextlib
import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from blip.errors import BlipError
from blip.train.flops import flop_counter

Outcome = Mapping[str, Tensor]

MIB = 2**20


class UnequalError(BlipError):
    """Two ways give different results: neither is worth timing."""


@dataclass(frozen=True)
class Way:
    """One way to a result.

    Attributes:
        run: What is timed.
        check: Gives the results that must be equal; `None` where `run` gives them.
        dtype: Of its matrix products.
    """

    run: Callable[[], Outcome]
    check: Callable[[], Outcome] | None = None
    dtype: torch.dtype = torch.float32


def absolute(ours: Tensor, theirs: Tensor) -> float:
    """Give the largest difference."""
    return (ours - theirs).abs().max().item()


@dataclass(frozen=True)
class Case:
    """A path and the ways to go it.

    Attributes:
        path: What is done, on what.
        ways: By name; ours is the first.
        targets: How many times faster ours shall be than others, at full size.
        items: How many `unit` a run handles.
        unit: Images, pairs, captions, ...
        difference: Of two tensors of floats; integers must be equal.
        tolerance: What `difference` may be; `None` reports it only.
        most_repeats: Runs are no more than these, where one takes minutes.
    """

    path: str
    ways: Mapping[str, Way]
    items: int
    unit: str
    targets: Mapping[str, float] = field(default_factory=dict)
    difference: Callable[[Tensor, Tensor], float] = absolute
    tolerance: float | None = 1e-5
    most_repeats: int | None = None

    def only(self, wanted: Collection[str]) -> "Case":
        """Leave out the ways that are not wanted."""
        return replace(self, ways={name: way for name, way in self.ways.items() if name in wanted})


@dataclass(frozen=True)
class Measured:
    """What one way cost.

    Attributes:
        seconds: Of every run.
        flops: Of a run, as counted: matrix products, convolutions, attention.
        dtype: Of its matrix products.
    """

    seconds: list[float]
    flops: int
    dtype: torch.dtype

    @property
    def median(self) -> float:
        """Seconds of the median run."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Comparison:
    """A case, measured.

    Attributes:
        case: Without its ways, which hold models.
        measured: By way.
        differences: The worst difference from ours, by way.
        peaks: Bytes at most beyond weights and inputs, by way; `None` where it cannot be measured.
    """

    case: Case
    measured: Mapping[str, Measured]
    differences: Mapping[str, float]
    peaks: Mapping[str, int | None] = field(default_factory=dict)


def compare(case: Case, repeats: int) -> Comparison:
    """Check that all ways give one result, then time them in turn.

    Args:
        case: The path.
        repeats: Runs of every way, the warm-up not counted.

    Raises:
        UnequalError: They do not.
    """
    outcomes: dict[str, Outcome] = {}
    flops = {}
    for name, way in case.ways.items():
        with flop_counter() as counter:
            outcomes[name] = (way.check or way.run)()
        flops[name] = counter.get_total_flops()
    ours, *others = outcomes
    differences = {other: _differ(case, outcomes[ours], outcomes[other], other) for other in others}
    outcomes.clear()
    seconds: dict[str, list[float]] = {name: [] for name in case.ways}
    for way in case.ways.values():
        if way.check is not None:
            way.run()
    for _ in range(min(repeats, case.most_repeats or repeats)):
        for name, way in case.ways.items():
            seconds[name].append(timed(way.run))
    measured = {
        name: Measured(seconds[name], flops[name], way.dtype) for name, way in case.ways.items()
    }
    return Comparison(replace(case, ways={}), measured, differences)


def timed(run: Callable[[], object]) -> float:
    """Give the seconds of a run, of which a GPU's work is part."""
    _settle()
    began = time.perf_counter()
    run()
    _settle()
    return time.perf_counter() - began


def peak_in_process(build: Callable[[Sequence[str]], Case], way: str) -> int | None:
    """Give the peak memory of a way's first run, in bytes, by a process of its own.

    Args:
        build: Makes the case with the ways that are wanted; can be pickled.
        way: Its name.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, build, way, torch.get_num_threads()).result()


def _peak(build: Callable[[Sequence[str]], Case], way: str, threads: int) -> int | None:
    torch.set_num_threads(threads)
    run = build([way]).ways[way].run
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):  # of glibc: else freed memory hides growth
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="ascii"
        )  # resets the high-water mark
    except OSError:
        return None  # no Linux, or not allowed
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """Read a size of this process from the kernel, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _differ(case: Case, ours: Outcome, theirs: Outcome, other: str) -> float:
    """Give the worst difference of two outcomes."""
    if ours.keys() != theirs.keys():
        name = min(ours.keys() ^ theirs.keys())
        raise UnequalError(f"{case.path}: only one of ours and {other} has a {name}")
    worst = 0.0
    for name, mine in ours.items():
        its = theirs[name]
        if mine.shape != its.shape:
            raise UnequalError(
                f"{case.path}: {name} is {tuple(mine.shape)} by ours and {tuple(its.shape)} by "
                f"{other}: one of them computes something else"
            )
        if not mine.is_floating_point():
            if not torch.equal(mine, its):
                count = int((mine != its).sum())
                raise UnequalError(
                    f"{case.path}: {count} of {mine.numel()} {name} differ between ours and "
                    f"{other}, which must be equal: nothing was timed"
                )
            continue
        found = case.difference(mine, its)
        if case.tolerance is not None and not found <= case.tolerance:
            raise UnequalError(
                f"{case.path}: {name} differs by {found:.2g} between ours and {other}, allowed is "
                f"{case.tolerance:g}: nothing was timed"
            )
        worst = max(worst, found)
    return worst


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
