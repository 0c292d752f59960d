"""`python -m benchmarks`: measure the hot paths here, and print the table."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from benchmarks import table
from benchmarks.inputs import find_size
from benchmarks.measure import Case, Comparison, compare, peak_in_process
from benchmarks.paths import PATHS, Builder, build_bf16, build_retrieval
from blip.errors import BlipError, ConfigError
from blip.models.device import prepare_device
from blip.train.flops import matrix_rate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

AGAINST = "plain,transformers,webdataset,torchvision,fp32,eager"


@app.command()
def main(
    size: Annotated[Literal["tiny", "base"], typer.Option(help="Of the models.")] = "base",
    paths: Annotated[str, typer.Option(help="Names with commas between.")] = ",".join(PATHS),
    against: Annotated[str, typer.Option(help="Ways to compare with, the same way.")] = AGAINST,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each way.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    scale: Annotated[
        float, typer.Option(min=0, max=1, help="Of the numbers in the retrieval evaluation.")
    ] = 1.0,
    memory: Annotated[bool, typer.Option(help="Measure peaks, in a process for each way.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write the rows here, as JSON.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Keep the table here, in place of this machine's last.")
    ] = None,
) -> None:
    """Time ours against the plain way and transformers, after checking that results are equal."""
    builders: dict[str, Builder] = {**PATHS, "retrieval": partial(build_retrieval, scale)}
    names, ways = paths.split(","), ["ours", *against.split(",")]
    if unknown := [name for name in names if name not in builders]:
        raise ConfigError(f"no path {unknown[0]!r}: one of {', '.join(builders)}")
    device = prepare_device(threads)
    rates = {dtype: matrix_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    sizes = find_size(size)
    done = []
    for name in names:
        done.append(_measure(partial(builders[name], sizes, device), name, ways, repeats, memory))
    if device.type == "cuda" and "bf16" in names and size == "base":
        large = partial(build_bf16, find_size("large"), device)
        done.append(_measure(large, "bf16", ways, repeats, memory))
    full = size == "base"
    machine, run = table.describe_machine(threads), table.describe_run(size, repeats, rates)
    result = table.markdown(done, full, rates)
    typer.echo(f"{machine}\n{run}\n\n{result}")
    if out is not None:
        table.write_json(done, full, out)
    if record is not None:
        table.record(machine, run, result, record)


def _measure(
    build: "partial[Case]", name: str, ways: list[str], repeats: int, memory: bool
) -> Comparison:
    typer.echo(f"{name}: building, checking, timing", err=True)
    case = build(ways).only(ways)
    found = compare(case, repeats)
    del case  # its models make room for those of the next processes
    typer.echo(f"{name}: {table.summary(found)}", err=True)
    if not memory:
        return found
    typer.echo(f"{name}: memory", err=True)
    return replace(found, peaks={way: peak_in_process(build, way) for way in found.measured})


if __name__ == "__main__":
    try:
        app()
    except BlipError as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        sys.exit(2)
