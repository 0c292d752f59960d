"""What training minimises: a model with its losses, batch in, scalars out."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


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
