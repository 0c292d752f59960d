"""`python -m benchmarks.checkpoints`: how long a checkpoint holds up the loop, and how long going on takes."""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from benchmarks.inputs import CAPTIONS, build_model, draw_images, draw_texts, find_size, preset
from blip import config
from blip.batch import Batch
from blip.config import PRESETS, load_config
from blip.models.device import prepare_device
from blip.objectives import Position
from blip.objectives.pretrain import PretrainObjective
from blip.train.checkpoint import Checkpoints
from blip.train.optim import build_optimizer
from blip.train.snapshot import Groups
from blip.train.state import load_optimizer, load_random_states, optimizer_tensors, random_states

PAIRS = 32  # of a step


class Run:
    """A pre-training run with random weights: model, twin, queue, AdamW."""

    def __init__(self, size: Literal["demo", "base"], device: torch.device) -> None:
        torch.manual_seed(0)
        sizes = find_size("base")
        pretraining = config.Pretrain.model_validate(preset("pretrain"))
        if size == "demo":
            demo = load_config(PRESETS / "demo.yaml")
            pretraining = demo.pretrain
            sizes = sizes.__class__("demo", demo.model, 400, 1, 0, 0.02)
        model = build_model(sizes, "pretrain", pretraining.image_size, device)
        self.objective = PretrainObjective(model, pretraining.contrast).to(device)
        self.optimizer = build_optimizer(self.objective, pretraining.optimizer)
        images = draw_images(model, PAIRS)
        texts = draw_texts(model, PAIRS, CAPTIONS, pretraining.max_tokens)
        self._batch = Batch(images, *texts, torch.arange(PAIRS, device=device))

    def step(self) -> None:
        """Do a step."""
        losses = self.objective(self._batch, Position(1000, 1000))
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        self.optimizer.step()

    def begin(self) -> None:
        """Give the optimizer its state, without the arithmetic of a step."""
        for parameter in self.objective.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def groups(self) -> Groups:
        """Give what is saved."""
        optimizer = optimizer_tensors(self.optimizer)
        return {"objective": self.objective.state_dict(), "optimizer": optimizer}

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        """Begin to save."""
        checkpoints.save(step, self.groups(), None, own=random_states())

    def restore(self, folder: Path) -> None:
        """Go on from the last checkpoint."""
        saved = Checkpoints(folder, "", keep=1).last()
        assert saved is not None
        saved.load("objective", self.objective.state_dict())
        load_optimizer(self.optimizer, saved)
        load_random_states(saved)


def main(
    size: Annotated[Literal["demo", "base"], typer.Option(help="Of the model.")] = "demo",
    repeats: Annotated[int, typer.Option(min=1, help="Saves of each way.")] = 5,
    every: Annotated[int, typer.Option(min=1, help="Steps from save to save.")] = 100,
    steps: Annotated[int, typer.Option(min=0, help="Steps to time, if any.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    folder: Annotated[Path, typer.Option(help="On the disk to be measured.")] = Path(),
) -> None:
    """Time what a save holds up when it is written behind the loop, and when the loop waits."""
    run = Run(size, prepare_device(threads))
    run.begin()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place)
        pause, whole = _time_saves(run, path, repeats)
        _say("restoring", [_seconds(lambda: run.restore(path)) for _ in range(repeats)])
    if steps:
        step = _say("step", [_seconds(run.step) for _ in range(steps)])
        # What the thread takes from the loop is at most its own time.
        least, most = pause / (every * step), whole / (every * step)
        typer.echo(f"a save every {every} steps slows them by {least:.3%}, at most {most:.3%}")


def _time_saves(run: Run, path: Path, repeats: int) -> tuple[float, float]:
    """Give how long the loop is held up, and how long it would be if it waited."""
    with Checkpoints(path, "", keep=1) as checkpoints:
        prepare = partial(checkpoints.prepare, run.groups(), own=random_states())
        _say("preparing", [_seconds(lambda: [prepare(), checkpoints.finish()])])
        _say("first pause", [_seconds(lambda: run.save(checkpoints, 0))])
        checkpoints.finish()
        size = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
        typer.echo(f"{'size':16} {size / 1e9:.3f} GB")
        pauses, waits = [], []
        for number in range(1, repeats + 1):
            pauses.append(_seconds(lambda number=number: run.save(checkpoints, number)))
            waits.append(pauses[-1] + _seconds(checkpoints.finish))
        return _say("pause", pauses), _say("whole save", waits)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _say(what: str, seconds: list[float]) -> float:
    middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
    typer.echo(f"{what:16} {middle:.4f} s ({low:.4f} to {high:.4f}, {len(seconds)} runs)")
    return middle


if __name__ == "__main__":
    typer.run(main)
