"""The curve of a run: means of what its steps reported, and a word where they mean trouble."""

import csv
import io
import logging
import math
from collections.abc import Callable, Mapping
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

NAMED_KEYS = 16  # of the images of a broken step


class Curve:
    """Points of a run, each the mean over the steps since the one before.

    Values stay on their device until a point is due, so that no step waits for one.

    Args:
        tracker: Told every point.
        keys_of: Gives the keys of the images of a step, counted from 0, to name a broken one's.
        scaled: The loss is scaled, and a step whose gradient overflows is skipped: no fault.

    Attributes:
        points: What `curves.csv` will hold.
    """

    def __init__(
        self, tracker: Tracker, keys_of: Callable[[int], list[str]], *, scaled: bool
    ) -> None:
        self.points: list[Point] = []
        self._tracker = tracker
        self._keys_of = keys_of
        self._checked = ("loss",) if scaled else ("loss", "grad_norm")
        self._pending: list[dict[str, Any]] = []  # of tensors, or of floats once settled
        self._warned = False

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor], grad_norm: Tensor) -> None:
        """Take in a step.

        Args:
            loss: What was minimised, a scalar.
            metrics: Scalars by name.
            grad_norm: Norm of its gradient before clipping. Where it is finite, and the weights
                were, they still are.
        """
        named = {f"loss_{n}" if n in LOSSES else n: value for n, value in metrics.items()}
        self._pending.append({"loss": loss.detach(), **named, "grad_norm": grad_norm})

    def close(self, step: int, lr: float, gauges: Mapping[str, float]) -> Point:
        """Make a point of the steps since the last one and tell the tracker.

        Losses and gauges are the means over processes.

        Args:
            step: Steps done.
            lr: Learning rate of the last one.
            gauges: What else to tell, under its whole name.

        Raises:
            BlipError: A loss or gradient is not finite; its step is named.
        """
        self.settle(step)
        rows = self._pending
        grad_norm = rows[-1]["grad_norm"]
        names = [name for name in rows[0] if name != "grad_norm"]
        means = {name: sum(row[name] for row in rows) / len(rows) for name in names}
        told = {**{f"train/{name}": value for name, value in means.items()}, **gauges}
        told = dict(zip(told, distributed.mean(list(told.values())), strict=True))
        means = {name: told[f"train/{name}"] for name in names}
        self.points.append({"step": step, **means, "lr": lr, "grad_norm": grad_norm})
        self._tracker.metrics({**told, "optim/lr": lr, "optim/grad_norm": grad_norm}, step)
        self._pending = []
        self._warn_if_stuck()
        return self.points[-1]

    def settle(self, step: int) -> None:
        """Bring what is pending to the host, and check it: call it before a checkpoint is saved.

        Raises:
            BlipError: A loss or gradient is not finite; the step, the values and images are named.
        """
        for row in self._pending:
            names = [name for name, value in row.items() if isinstance(value, Tensor)]
            if names:
                values = torch.stack([row[name].float() for name in names]).tolist()
                row.update(zip(names, values, strict=True))
        for i, row in enumerate(self._pending, step - len(self._pending) + 1):
            broken = [name for name in self._checked if not math.isfinite(row[name])]
            if broken:
                raise BlipError(self._describe(i, broken, row))

    def _describe(self, step: int, broken: list[str], row: Mapping[str, float]) -> str:
        what = {"loss": "the loss", "grad_norm": "the gradient"}[broken[0]]
        parts = ", ".join(f"{name} {value:g}" for name, value in row.items())
        keys = self._keys_of(step - 1)
        more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
        return (
            f"step {step}: {what} is not finite ({parts}); its images are "
            f"{', '.join(keys[:NAMED_KEYS])}{more}: lower optimizer.lr, set optimizer.clip_norm, "
            "or look for broken pairs; the last checkpoint is whole"
        )

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint keeps, in all processes at once; call `settle` first.

        What is pending becomes the mean over processes here, too: whoever goes on from the
        checkpoint has but this, and the curve shall not tell whether anybody did.
        """
        values = iter(distributed.mean([v for row in self._pending for v in row.values()]))
        self._pending = [{name: next(values) for name in row} for row in self._pending]
        return {"points": self.points, "pending": self._pending}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
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
