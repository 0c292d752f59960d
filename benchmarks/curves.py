"""`python -m benchmarks.curves`: draw what an item costs against batch, candidates, image size."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from benchmarks import inputs, plain, table, theirs
from benchmarks.inputs import Size, find_size
from benchmarks.measure import Case, Comparison, Outcome, Way, compare
from benchmarks.paths import (
    Builder,
    Ways,
    build_beam,
    build_nucleus,
    build_rerank,
    build_vqa,
    relative,
)
from blip.errors import BlipError, ConfigError
from blip.files import write_text
from blip.models.device import prepare_device
from blip.report.axes import Chart, rounded_range
from blip.report.charts import Line, line_chart
from blip.report.figure import Figure
from blip.train.flops import matrix_rate

SERIES = {"ours": "series-blue", "plain": "series-slate", "transformers": "series-orange"}


def build_vision(size: Size, device: torch.device, wanted: Ways, image_size: int) -> Case:
    """The image encoder."""
    model = inputs.build_model(size, "matching", image_size, device)
    images = inputs.draw_images(model, 2)

    @torch.inference_mode()
    def ours() -> Outcome:
        return {"image tokens": model.encode_image(images)}

    @torch.inference_mode()
    def plainly() -> Outcome:
        return {"image tokens": plain.see(model.vision, images)}

    ways = {"ours": Way(ours), "plain": Way(plainly)}
    if "transformers" in wanted:
        converted = theirs.load(model)

        @torch.inference_mode()
        def converted_way() -> Outcome:
            return {"image tokens": converted.vision_model(images).last_hidden_state}

        ways["transformers"] = Way(converted_way)
    path = f"image encoder, batch {len(images)}, {image_size} px"
    return Case(path, ways, len(images), "images", difference=relative)


@dataclass(frozen=True)
class Sweep:
    """A path of which one number changes.

    Attributes:
        picture: Where it is drawn.
        title: Of the chart.
        x_title: What changes.
        builders: By its values, the cheapest first.
    """

    picture: str
    title: str
    x_title: str
    builders: Mapping[int, Builder]


SWEEPS = {
    "beam": Sweep(
        "batch",
        "Captions by beam search",
        "images in the batch",
        {n: partial(build_beam, batch_size=n) for n in (1, 2, 4, 8)},
    ),
    "nucleus": Sweep(
        "batch",
        "Captions by nucleus sampling",
        "images in the batch",
        {n: partial(build_nucleus, batch_size=n) for n in (1, 2, 4, 8, 16)},
    ),
    "rerank": Sweep(
        "candidates",
        "Re-ranking, 384 px",
        "candidates of the image",
        {n: partial(build_rerank, num_texts=n) for n in (8, 16, 32, 64)},
    ),
    "vqa": Sweep(
        "candidates",
        "VQA, 2 questions",
        "answers scored of 3,128",
        {n: partial(build_vqa, k=n, count=2) for n in (32, 64, 128, 256)},
    ),
    "vision": Sweep(
        "image_size",
        "Image encoder",
        "pixels of a side",
        {n: partial(build_vision, image_size=n) for n in (224, 304, 384, 480)},
    ),
    "rerank_size": Sweep(
        "image_size",
        "Re-ranking, 32 candidates",
        "pixels of a side",
        {n: partial(build_rerank, image_size=n) for n in (224, 304, 384, 480)},
    ),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    size: Annotated[Literal["tiny", "base"], typer.Option(help="Of the models.")] = "base",
    paths: Annotated[str, typer.Option(help="Names with commas between.")] = ",".join(SWEEPS),
    against: Annotated[
        str, typer.Option(help="Ways to compare with, the same way.")
    ] = "plain,transformers",
    points: Annotated[int, typer.Option(min=2, help="Of each curve, the cheapest.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each way.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    out: Annotated[Path, typer.Option(help="The folder of the pictures.")] = Path("docs/pictures"),
) -> None:
    """Measure the paths at several sizes, each after checking that results are equal, and draw them."""
    names, ways = paths.split(","), ["ours", *against.split(",")]
    if unknown := [name for name in names if name not in SWEEPS]:
        raise ConfigError(f"no curve {unknown[0]!r}: one of {', '.join(SWEEPS)}")
    device = prepare_device(threads)
    sizes = find_size(size)
    measured: dict[str, dict[int, Comparison]] = {}
    for name in names:
        measured[name] = {}
        for value, build in list(SWEEPS[name].builders.items())[:points]:
            found = compare(build(sizes, device, ways).only(ways), repeats)
            typer.echo(f"{name}, {value}: {table.summary(found)}", err=True)
            measured[name][value] = found
    rates = {torch.float32: matrix_rate(device, torch.float32)}
    machine, run = table.describe_machine(threads), table.describe_run(size, repeats, rates)
    done = [found for curve in measured.values() for found in curve.values()]
    typer.echo(f"{machine}\n{run}\n\n{table.markdown(done, False, rates)}")
    for picture in {SWEEPS[name].picture: None for name in names}:
        drawn = [name for name in names if SWEEPS[name].picture == picture]
        charts = [draw(SWEEPS[name], measured[name]) for name in drawn]
        legend = [(series, way) for way, series in SERIES.items() if way in ways]
        figure = Figure(f"benchmark_{picture}", charts, legend)
        write_text(out / f"{figure.name}.svg", figure.picture() + "\n")


def draw(sweep: Sweep, measured: Mapping[int, Comparison]) -> Chart:
    """Draw the milliseconds of an item, by every way that there is."""
    values: Sequence[int] = list(measured)
    first = measured[values[0]]
    lines = [
        Line(way, SERIES[way], values, [_milliseconds(measured[value], way) for value in values])
        for way in first.measured
    ]
    title = f"{sweep.title}: ms per {first.case.unit.removesuffix('s')}"
    y_range = rounded_range([0.0, *(y for line in lines for y in line.ys)])
    return line_chart(title, lines, sweep.x_title, y_range)


def _milliseconds(found: Comparison, way: str) -> float:
    return 1000 * found.measured[way].median / found.case.items


if __name__ == "__main__":
    try:
        app()
    except BlipError as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        sys.exit(2)
