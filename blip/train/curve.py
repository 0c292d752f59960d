"""The curve of a run: means of what its steps reported, and a word where they mean trouble."""

import csv
import io
import logging
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.errors import BlipError
from blip.files import write_text
from blip.tracker import Tracker

log = logging.getLogger(__name__)

Point = dict[str, float]

LOSSES = ("itc", "itm", "lm")  # reported as loss_itc, ...
# Of curves.csv: these first, where there are such, then the others by name.
COLUMNS = (
    "step",
    "loss",
    "loss_itc",
    "loss_itm",
    "loss_lm",
    "itm_accuracy",
    "alpha",
    "temperature",
    "lr",
    "grad_norm",
)

# The entropy of one match among three: what ITM costs a model that does not look (BLIP.md 2.2).
STUCK_ITM = math.log(3) - math.log(2) * 2 / 3
STUCK_WITHIN = 0.03
STUCK_STEPS = 300


class Curve:
    """Points of a run, each the mean over the steps since the one before.

    Values stay on their device until a point is due, so that no step waits for one.

    Attributes:
        points: What `curves.csv` will hold.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.points: list[Point] = []
        self._tracker = tracker
        self._pending: list[dict[str, Any]] = []  # of tensors, or of floats once settled
        self._seconds: list[tuple[float, float]] = []
        self._warned = False

    def add(
        self, loss: Tensor, metrics: Mapping[str, Tensor], seconds: float, waited: float
    ) -> None:
        """Take in a step.

        Args:
            loss: What was minimised, a scalar.
            metrics: Scalars by name.
            seconds: The step's duration.
            waited: The part of it that was spent waiting for data.
        """
        named = {f"loss_{n}" if n in LOSSES else n: value for n, value in metrics.items()}
        self._pending.append({"loss": loss.detach(), **named})
        self._seconds.append((seconds, waited))

    def close(
        self, step: int, lr: float, grad_norm: float, batch_size: int, on_host: bool
    ) -> Point:
        """Make a point of the steps since the last one and tell the tracker.

        Args:
            step: Steps done.
            lr: Learning rate of the last one.
            grad_norm: Norm of its gradient before clipping.
            batch_size: Pairs of a step.
            on_host: Whether the device is the host, so that a step's duration is its own.

        Raises:
            BlipError: A loss is not finite; its step is named.
        """
        self.settle(step)
        rows = self._pending
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        means = dict(zip(means, distributed.mean(list(means.values())), strict=True))
        self.points.append({"step": step, **means, "lr": lr, "grad_norm": grad_norm})
        # A median is deaf to the step that happened to save a checkpoint. A device runs behind its
        # host, whose every single duration says nothing, but their sum up to a settling does.
        middle = statistics.median if on_host else statistics.fmean
        seconds, waited = (middle(column) for column in zip(*self._seconds, strict=True))
        self._tracker.metrics(
            {
                **{f"train/{name}": value for name, value in means.items()},
                "optim/lr": lr,
                "optim/grad_norm": grad_norm,
                "perf/images_per_second": batch_size / seconds,
                "perf/step_seconds": seconds,
                "perf/data_seconds": waited,
            },
            step,
        )
        self._pending, self._seconds = [], []
        self._warn_if_stuck()
        return self.points[-1]

    def settle(self, step: int) -> None:
        """Bring what is pending to the host, and check it.

        Raises:
            BlipError: A loss is not finite; its step is named.
        """
        for row in self._pending:
            names = [name for name, value in row.items() if isinstance(value, Tensor)]
            if names:
                values = torch.stack([row[name].float() for name in names]).tolist()
                row.update(zip(names, values, strict=True))
        for i, row in enumerate(self._pending, step - len(self._pending) + 1):
            if not math.isfinite(row["loss"]):
                parts = ", ".join(f"{name} {value:g}" for name, value in row.items())
                raise BlipError(
                    f"step {i}: the loss is not finite ({parts}): lower optimizer.lr, set "
                    "optimizer.clip_norm, or look for broken pairs; the last checkpoint is whole"
                )

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint keeps; call `settle` first."""
        return {"points": self.points, "pending": self._pending}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept; how long the pending steps took is lost."""
        self.points, self._pending = state["points"], state["pending"]

    def _warn_if_stuck(self) -> None:
        last = self.points[-1]
        if self._warned or "loss_itm" not in last or last["step"] < STUCK_STEPS:
            return
        recent = [p["loss_itm"] for p in self.points if p["step"] > last["step"] - STUCK_STEPS]
        if all(abs(loss - STUCK_ITM) < STUCK_WITHIN for loss in recent):
            self._warned = True
            log.warning(
                "step %d: the ITM loss has stayed at %.2f for %d steps, which is what guessing "
                "costs (one match among three: %.4f): begin with uniform negatives by "
                "contrast.uniform_negatives, train longer, or look for wrong pairs",
                last["step"],
                recent[-1],
                STUCK_STEPS,
                STUCK_ITM,
            )


def write_curves(points: list[Point], path: Path) -> None:
    """Write points as CSV, for plots."""
    names = [name for name in COLUMNS if name in points[0]]
    text = io.StringIO()
    columns = names + sorted(points[0].keys() - set(names))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    write_text(path, text.getvalue())
