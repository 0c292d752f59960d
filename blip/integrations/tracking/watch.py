"""Watches the processes of running stages: what they use, and whether they were killed.

What it sees goes to a journal of its own beside the stage's, `system.jsonl`, so that it is carried
to MLflow, and survives a server that is away, like everything else.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from blip.tracker import Journal, read_journal

JOURNAL = "journal.jsonl"
SYSTEM = "system.jsonl"

_PERIOD = 5.0  # seconds between samples
_GIB = 2**30


@dataclass
class _Sight:
    """A stage's process as last seen."""

    process: psutil.Process
    journal: Journal
    began: float
    sampled: float = 0.0
    cpu_seconds: float = 0.0


class Watch:
    """Follows the processes of the stages in a `runs` folder."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._sights: dict[Path, _Sight] = {}
        self._gpus = _Gpus()

    def look(self) -> None:
        """Sample every running stage; of one that vanished without a word say it was killed."""
        for folder in (journal.parent for journal in self._runs.glob(f"*/{JOURNAL}")):
            process = _holder(folder / "lock")
            sight = self._sights.get(folder)
            if sight is not None and sight.process != process:
                del self._sights[folder]
                if not _ended(folder):
                    sight.journal.end("KILLED")
                sight = None
            if sight is None and process is not None:
                began = _first_time(folder)
                if began is not None:
                    sight = _Sight(process, Journal(folder / SYSTEM), began)
                    self._sights[folder] = sight
            if sight is not None and time.time() - sight.sampled >= _PERIOD:
                self._sample(sight)

    def _sample(self, sight: _Sight) -> None:
        now, cpu_seconds, memory, pids = time.time(), 0.0, 0, []
        try:
            family = [sight.process, *sight.process.children(recursive=True)]
        except psutil.Error:
            return
        for process in family:
            if process.pid == os.getpid():  # the stage started us, but we are no part of it
                continue
            try:
                with process.oneshot():
                    used = process.cpu_times()
                    cpu_seconds += used.user + used.system
                    memory += process.memory_info().rss
                    pids.append(process.pid)
            except psutil.Error:
                continue  # it ended meanwhile
        values = {"system/memory_gib": memory / _GIB, **self._gpus.sample(pids)}
        if sight.sampled:
            seconds = now - sight.sampled
            values["system/cpu_cores"] = max(0.0, cpu_seconds - sight.cpu_seconds) / seconds
        sight.journal.metrics(values, step=int(now - sight.began))
        sight.sampled, sight.cpu_seconds = now, cpu_seconds


class _Gpus:
    """NVIDIA GPUs, where there are any and pynvml is installed."""

    def __init__(self) -> None:
        self._devices = []
        try:
            import pynvml
        except ImportError:
            return
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            self._devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except pynvml.NVMLError:
            return

    def sample(self, pids: list[int]) -> dict[str, float]:
        """Give use and memory of every GPU that one of the processes computes on."""
        values = {}
        for index, device in enumerate(self._devices):
            try:
                processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(device)
                rates = self._nvml.nvmlDeviceGetUtilizationRates(device)
            except self._nvml.NVMLError:
                continue
            used = [process.usedGpuMemory or 0 for process in processes if process.pid in pids]
            if used:
                values[f"system/gpu_{index}_percent"] = float(rates.gpu)
                values[f"system/gpu_{index}_memory_gib"] = sum(used) / _GIB
        return values


def _holder(lock: Path) -> psutil.Process | None:
    """Find the process that holds a stage's lock, on this machine."""
    try:
        process = psutil.Process(int(lock.read_text()))
        held = any(Path(file.path) == lock.resolve() for file in process.open_files())
    except (OSError, ValueError, psutil.Error):
        return None
    return process if held else None


def _ended(folder: Path) -> bool:
    events, _ = read_journal(folder / JOURNAL)
    return bool(events) and events[-1]["event"] == "end"


def _first_time(folder: Path) -> float | None:
    """Give the time of the journal's first event, from which samples count their seconds."""
    with (folder / JOURNAL).open("rb") as file:
        line = file.readline()
    return float(json.loads(line)["time"]) if line.endswith(b"\n") else None
