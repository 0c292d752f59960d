"""The outcome as a table, and as a list for programs."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import torch

from benchmarks.measure import MIB, Comparison, Measured
from blip.files import write_text

HEAD = (
    "path", "against", "ours s", "theirs s", "ratio", "target", "worst difference", "peak MiB",
    "their peak", "GFLOP", "theirs", "share of rate", "theirs", "per second",
)  # fmt: skip


Rates = Mapping[torch.dtype, float]


class Row(TypedDict):
    """One comparison, as `results.json` holds it.

    `ratio` is how many times faster ours is; `target` is `None` at other than the full size;
    `peak_mib` is of ours, beyond weights and inputs, or `None` where it was not measured.
    """

    path: str
    against: str
    ratio: float
    target: float | None
    ours_s: float
    theirs_s: float
    peak_mib: float | None


def rows(comparisons: Sequence[Comparison], full_size: bool) -> list[Row]:
    """Give a row for every way that ours is compared with."""
    found = []
    for comparison in comparisons:
        ours = comparison.measured["ours"]
        for name, theirs in comparison.measured.items():
            if name == "ours":
                continue
            target = comparison.case.targets.get(name) if full_size else None
            found.append(
                Row(
                    path=comparison.case.path,
                    against=name,
                    ratio=theirs.median / ours.median,
                    target=target,
                    ours_s=ours.median,
                    theirs_s=theirs.median,
                    peak_mib=_mib(comparison.peaks.get("ours")),
                )
            )
    return found


def markdown(comparisons: Sequence[Comparison], full_size: bool, rates: Rates) -> str:
    """Give the table; `rates` are what matrix products reach here, in FLOP/s."""
    lines = [list(HEAD)]
    by_path = {comparison.case.path: comparison for comparison in comparisons}
    for row in rows(comparisons, full_size):
        comparison = by_path[row["path"]]
        ours, theirs = comparison.measured["ours"], comparison.measured[row["against"]]
        case = comparison.case
        lines.append(
            [
                case.path,
                row["against"],
                _seconds(ours),
                _seconds(theirs),
                f"{row['ratio']:.2f}",
                "" if row["target"] is None else f"{row['target']:.1f}",
                f"{comparison.differences[row['against']]:.1e}",
                _peak(comparison, "ours"),
                _peak(comparison, row["against"]),
                _gflop(ours),
                _gflop(theirs),
                _share(ours, rates),
                _share(theirs, rates),
                f"{case.items / ours.median:.3g} {case.unit}",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def summary(comparison: Comparison) -> str:
    """Say in one line how much faster ours is."""
    found = rows([comparison], full_size=False)
    ratios = [f"{row['ratio']:.2f} x {row['against']}" for row in found]
    return f"{comparison.measured['ours'].median:.3g} s, {', '.join(ratios)}"


def describe_machine(threads: int) -> str:
    """Name this machine, of which RESULTS.md keeps one table."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = re.findall(r"^model name\s*: (.*)$", info.read_text(encoding="utf-8"), re.M)
        cpu = models[0] if models else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {os.cpu_count()} cores, {threads} used{gpu}"


def describe_run(size: str, repeats: int, rates: Rates) -> str:
    """Say what was measured, with which versions, and at which load."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    reached = " and ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}"
        for dtype, rate in rates.items()
    )
    load = f", load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    return (
        f"Size {size}, median of {repeats} alternating runs (min-max); {versions}; commit "
        f"{_commit()}; matrix products reach {reached}{load}."
    )


def write_json(comparisons: Sequence[Comparison], full_size: bool, out: Path) -> None:
    """Write the rows as a list."""
    write_text(out, json.dumps(rows(comparisons, full_size), indent=1) + "\n")


def record(machine: str, run: str, table: str, out: Path) -> None:
    """Put the table into a file of tables, in place of the last of this machine."""
    text = out.read_text(encoding="utf-8") if out.is_file() else "# Results\n"
    introduction, *sections = re.split(r"^(?=## )", text, flags=re.M)
    kept = [section for section in sections if section.splitlines()[0] != f"## {machine}"]
    mine = f"## {machine}\n\n{run}\n\n{table}\n"
    parts = [introduction, *kept, mine]
    write_text(out, "\n\n".join(part.strip() for part in parts) + "\n")


def _seconds(measured: Measured) -> str:
    low, high = min(measured.seconds), max(measured.seconds)
    return f"{measured.median:.3g} ({low:.3g}-{high:.3g})"


def _mib(size: int | None) -> float | None:
    return None if size is None else size / MIB


def _peak(comparison: Comparison, way: str) -> str:
    peak = _mib(comparison.peaks.get(way))
    return "" if peak is None else f"{peak:.0f}"


def _commit() -> str:
    """Give the commit that was measured, with a mark if files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _gflop(measured: Measured) -> str:
    return f"{measured.flops / 1e9:.1f}" if measured.flops else ""


def _share(measured: Measured, rates: Rates) -> str:
    rate = measured.flops / measured.median
    return f"{rate / rates[measured.dtype]:.0%}" if rate else ""
