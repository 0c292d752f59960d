"""What training costs: the seconds of a step by phase, memory, the share of the device's peak."""

import contextlib
import functools
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import psutil
import torch

from blip.train.flops import flop_counter, matrix_rate

Phase = Literal["data", "forward", "backward", "optimizer", "logging", "evaluation", "checkpoint"]

STEP: tuple[Phase, ...] = ("data", "forward", "backward", "optimizer", "logging")
GIB = 2**30


class Telemetry:
    """A stopwatch with laps, and what else a step costs; no step waits for it.

    On a GPU a lap is an event on the stream, read when a point is due: its phases are those of the
    device, so `data` is how long it idled for the next batch, not how long the host waited. The
    first step of a process warms up and is not timed.

    Args:
        device: Where the training is.
        dtype: Of most of its matrix products.
        counts_flops: Count the arithmetic of the first step. Not where the model is compiled: a
            step that is watched is not, and may differ in the last bits.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, counts_flops: bool = True) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._counts, self._flops = counts_flops, 0
        self._peak = _peak(device, dtype, torch.get_num_threads()) if counts_flops else 0.0
        self._warm = False
        self._steps = 0
        self._laps: list[tuple[Phase | None, float | torch.cuda.Event]] = [(None, self._now())]

    def lap(self, phase: Phase) -> None:
        """Say what has been done since the last lap."""
        self._laps.append((phase, self._now()))

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Hold a step's computation; that of the first one is counted."""
        counted = flop_counter() if self._counts and not self._warm else None
        with counted or contextlib.nullcontext():
            yield
        if counted:
            self._flops = counted.get_total_flops()
        if self._warm:
            self._steps += 1
        else:
            self._warm, self._laps = True, self._laps[-1:]

    def take(self, batch_size: int) -> dict[str, float]:
        """Give means over the steps since the last call, at a step at which to wait is no loss.

        - `data_seconds`, ... of a step by phase, `step_seconds` all but `checkpoint_seconds` and
          `evaluation_seconds`;
          `images_per_second`, of the global batch.
        - `memory_peak_gib`: allocated on the GPU at most; else `memory_gib`: resident, of the host.
        - `flops_share`: arithmetic of a step over its seconds, as a share of the rate that a large
          matrix product reaches here in the same precision, as measured at the start.

        Args:
            batch_size: Pairs of a step.
        """
        told = self._memory()
        laps, steps = self._laps, self._steps
        self._laps, self._steps = laps[-1:], 0
        if not steps:
            return told
        seconds = dict.fromkeys(STEP, 0.0)
        for (_, before), (phase, after) in pairwise(laps):
            assert phase is not None
            seconds[phase] = seconds.get(phase, 0.0) + _between(before, after) / steps
        whole = sum(seconds[phase] for phase in STEP)
        told |= {f"{phase}_seconds": value for phase, value in seconds.items()}
        told |= {"step_seconds": whole, "images_per_second": batch_size / whole}
        if self._flops:
            told["flops_share"] = self._flops / whole / self._peak
        return told

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _memory(self) -> dict[str, float]:
        if self._on_gpu:
            return {"memory_peak_gib": torch.cuda.max_memory_allocated(self._device) / GIB}
        return {"memory_gib": psutil.Process().memory_info().rss / GIB}


@functools.cache
def _peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Give the rate of matrix products, measured once a process."""
    return matrix_rate(device, dtype)


def _between(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
    if isinstance(before, float):
        assert isinstance(after, float)
        return after - before
    assert not isinstance(after, float)
    after.synchronize()  # at a logging step it has long been reached
    return before.elapsed_time(after) / 1000
