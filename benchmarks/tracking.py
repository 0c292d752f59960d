"""`python -m benchmarks.tracking`: what telling costs a step of the demo's pre-training.

A real run, in which every call of stopwatch, curve, journal, bar and the gradient's norm is timed:
the difference of two runs would drown in the noise of a busy machine. All is the time of this
process alone, without what others take of the cores.
"""

import contextlib
import functools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from torch import nn

from blip.batch import Batch, SpecialTokens
from blip.config import PRESETS, Pretrain, load_config
from blip.models.blip import Blip
from blip.objectives.pretrain import PretrainObjective
from blip.progress import Progress
from blip.tracker import Journal
from blip.train.curve import Curve
from blip.train.telemetry import Telemetry
from blip.train.trainer import fit

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

TELLING: dict[str, tuple[Any, ...]] = {
    "laps": (Telemetry, "lap", "take"),
    "curve and journal": (Curve, "add", "settle", "close"),
    "bar": (Progress, "advance"),
    "gradient norm": (nn.utils, "get_total_norm"),
}


class RandomPairs:
    """Batches of noise, of the demo's shapes."""

    num_examples = steps_per_epoch = 1000

    def __init__(self, training: Pretrain, num_pieces: int) -> None:
        generator = torch.Generator().manual_seed(0)
        count, side = training.batch_size, training.image_size
        ids = torch.randint(5, num_pieces, (count, 12), generator=generator)
        images = torch.randn(count, 3, side, side, generator=generator)
        self._batch = Batch(images, ids, torch.ones_like(ids), torch.arange(count))

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Give the same batch at every step."""
        return (self._batch for _ in range(start, stop))

    def keys_of(self, step: int) -> list[str]:
        """Noise has no keys."""
        return []


@app.command()
def main(
    steps: Annotated[int, typer.Option(min=20, help="Of the run; 10 of them warm up.")] = 60,
) -> None:
    """Print what telling costs, in all and by part, as shares of a step."""
    config = load_config(PRESETS / "demo.yaml")
    torch.set_num_threads(config.threads)
    training = config.pretrain.model_copy(update={"steps": steps, "checkpoint_every": steps})
    pieces = config.tokenizer.size
    special = SpecialTokens(pad=0, cls=2, sep=3, dec=pieces, enc=pieces + 1)
    model = Blip(config.model, training.image_size, pieces + 2, special, "pretrain")
    objective = PretrainObjective(model, training.contrast)
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        for part, (owner, *names) in TELLING.items():
            for name in names:
                timed = _timed(getattr(owner, name), part, spent)
                patches.enter_context(mock.patch.object(owner, name, timed))
        began = _Marks(spent)
        objective.register_forward_pre_hook(began)
        fit(
            objective,
            RandomPairs(training, pieces),
            training,
            Journal(Path(folder, "j")),
            Path(folder),
        )
    seconds, told = began.since_warm()
    whole = sum(told.values())
    sys.stdout.write(f"step {1000 * seconds:.1f} ms of the process\n")
    for part, value in [*told.items(), ("all", whole)]:
        sys.stdout.write(f"{part:18}{1e6 * value:9.0f} us  {value / seconds:7.3%} of the step\n")


class _Marks:
    """Notes the process's time and what was spent, whenever a step begins."""

    def __init__(self, spent: Counter[str]) -> None:
        self._spent = spent
        self._marks: list[tuple[float, Counter[str]]] = []

    def __call__(self, *_: object) -> None:
        self._marks.append((time.process_time(), self._spent.copy()))

    def since_warm(self) -> tuple[float, dict[str, float]]:
        """Give the seconds of a step, and those spent on each part, after ten steps to warm up."""
        (first, before), (last, after) = self._marks[10], self._marks[-1]
        steps = len(self._marks) - 11
        return (last - first) / steps, {p: (after[p] - before[p]) / steps for p in TELLING}


def _timed(call: Callable[..., Any], part: str, spent: Counter[str]) -> Callable[..., Any]:
    """Add the time of every call, but for what it hands to another that is timed."""

    @functools.wraps(call)
    def timed(*arguments: Any, **named: Any) -> Any:
        inner, began = spent.total(), time.process_time()
        try:
            return call(*arguments, **named)
        finally:
            inner = spent.total() - inner
            spent[part] += time.process_time() - began - inner  # type: ignore[assignment]

    return timed


if __name__ == "__main__":
    app()
