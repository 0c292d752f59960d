"""Evaluation while training: means over held-out batches, the best of them, and when to stop."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch

from blip import config, distributed
from blip.errors import ConfigError
from blip.objectives import Objective, Position
from blip.train.curve import LOSSES
from blip.train.step import AnyBatch

Evaluate = Callable[[Objective, Position], dict[str, float]]


class Batches(Protocol):
    """Batches by step, as of a loader."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches."""

    def iterate(self, start: int, stop: int) -> Iterator[AnyBatch]:
        """Give the batches of the steps from `start` to `stop`."""


def held_out(batches: Batches, settings: config.HeldOut) -> Evaluate:
    """Give the function that evaluates an objective on held-out batches.

    It gives the mean of the loss and of each metric over all processes, and leaves no trace:
    generators and buffers (the queue) are as before. Its own chance is the same each time.
    """

    @torch.no_grad()
    def evaluate(objective: Objective, position: Position) -> dict[str, float]:
        training = objective.training
        buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
        sums: Any = 0
        names: list[str] = []
        device = next(objective.parameters()).device
        ones = torch.ones((), device=device)
        objective.eval()
        # Of the GPUs of a machine, a process has one.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(distributed.rank())
            for batch in batches.iterate(0, min(settings.batches, batches.steps_per_epoch)):
                losses = objective(batch, position)
                outcome = {"loss": losses.total, **losses.metrics}
                names = list(outcome)
                row = torch.stack([*(value.float() for value in outcome.values()), ones])
                sums = sums + row * len(batch)
        for name, buffer in objective.named_buffers():
            buffer.copy_(buffers[name])
        objective.train(training)
        distributed.release(objective)
        *values, examples = distributed.total(sums).tolist()
        means = (value / examples for value in values)
        return {
            f"loss_{name}" if name in LOSSES else name: value
            for name, value in zip(names, means, strict=True)
        }

    return evaluate


class Best:
    """The best evaluation so far, and how long ago it was.

    Args:
        settings: Which metric, which is better, when to stop.

    Attributes:
        step: Of the best evaluation; None before the first.
        value: What it came to.
        since: Evaluations since.
    """

    def __init__(self, settings: config.HeldOut) -> None:
        self._settings = settings
        self.step: int | None = None
        self.value = math.inf if settings.best == "lowest" else -math.inf
        self.since = 0

    @property
    def stops(self) -> bool:
        """Whether there was no better one for too long."""
        return 0 < self._settings.patience <= self.since

    def take(self, step: int, values: Mapping[str, float]) -> bool:
        """Take an evaluation in; tell whether it is the best so far.

        Raises:
            ConfigError: It does not have the metric.
        """
        name = self._settings.metric
        if name not in values:
            raise ConfigError(
                f"held_out.metric {name!r} is not measured; there are {', '.join(sorted(values))}"
            )
        value = values[name]
        better = value < self.value if self._settings.best == "lowest" else value > self.value
        if better:
            self.step, self.value, self.since = step, value, 0
        else:
            self.since += 1
        return better

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint keeps."""
        return {"step": self.step, "value": self.value, "since": self.since}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.step, self.value, self.since = state["step"], state["value"], state["since"]
