"""What training minimises: a model with its losses, batch in, scalars out."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn


class Position(NamedTuple):
    """Where in the run a step stands.

    Attributes:
        step: Steps done before this one.
        steps_per_epoch: Steps that make an epoch.
    """

    step: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Losses:
    """The outcome of a step.

    Attributes:
        total: Scalar to call `backward` on.
        metrics: Detached scalars by name: the losses and what tells how training goes. Reading one
            makes the host wait for the device, so do it at logging steps only.
    """

    total: Tensor
    metrics: dict[str, Tensor]


class Objective(nn.Module):
    """A module of (batch, position) -> Losses, which `fit` trains."""

    def gauges(self, step: int, batch_size: int) -> dict[str, float]:
        """Tell, at a logging step, what follows from the place in the run alone.

        Args:
            step: Steps done before this one.
            batch_size: Pairs of a step, of all processes.
        """
        return {}
