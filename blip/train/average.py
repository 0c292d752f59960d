"""The moving average of the weights, which often does better than the weights themselves."""

import torch
from torch import Tensor, nn

from blip import distributed


class WeightAverage(nn.Module):
    """An exponential moving average of what is trained: a <- d a + (1 - d) p after every step.

    In the first steps d is (1 + t) / (10 + t) where that is less than the decay, so that the
    average leaves the initial weights soon.

    Args:
        module: What is trained; not a part of this one.
        decay: d.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self._decay = decay
        self._leaders = [p for p in module.parameters() if p.requires_grad]
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        for name, leader in zip(names, self._leaders, strict=True):
            self.register_buffer(name.replace(".", "/"), leader.detach().clone())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average, after the step with this number."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._pairs(), 1.0 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Let average and weights change places; to do it again undoes it."""
        for average, leader in zip(*self._pairs(), strict=True):
            kept = average.clone()
            average.copy_(leader)
            leader.copy_(kept)

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        averages = [distributed.local(average) for average in self.buffers()]
        return averages, [distributed.local(leader) for leader in self._leaders]
