"""What training minimises: a model with its losses, batch in, scalars out."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from blip.models.vit import VisionBlock


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
        lm: The part of the total that is a mean over tokens; all else is a mean over examples.
    """

    total: Tensor
    metrics: dict[str, Tensor]
    lm: Tensor | None = None


class Objective(nn.Module):
    """A module of (batch, position) -> Losses, which `fit` trains."""

    def begin_step(self) -> None:
        """Do what is due once before the forward passes of a step; its parts follow one another."""

    def count_tokens(self, batch: Any) -> Tensor:
        """Count what `Losses.lm` is a mean of: a scalar where the batch is."""
        count: Tensor = batch.images.new_zeros(())
        return count

    def units(self) -> list[nn.Module]:
        """Give the modules that sharding gathers one at a time: the blocks of image encoders.

        A layer of a text stack is none: its cross-attention projects a memory before the layer
        itself is called, and may be part of two stacks.
        """
        return [module for module in self.modules() if isinstance(module, VisionBlock)]

    def gauges(self, step: int, batch_size: int) -> dict[str, float]:
        """Tell, at a logging step, what follows from the place in the run alone.

        Args:
            step: Steps done before this one.
            batch_size: Pairs of a step, of all processes.
        """
        return {}
