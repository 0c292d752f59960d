"""AdamW, and the learning rate as a function of the step (BLIP.md 2.2, 5)."""

import math

import torch
from torch import nn

from blip.config import Optimizer
from blip.distributed import is_cut


def build_optimizer(module: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """Build AdamW over the parameters that are trained; its rate is set before every step.

    With `decay_all` there is one group, as in the reference; else biases, norms and other vectors
    and scalars have no weight decay.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    spared = [] if config.decay_all else [p for p in parameters if p.ndim < 2]
    decayed = parameters if config.decay_all else [p for p in parameters if p.ndim >= 2]
    groups = [
        # A kernel takes tensors of one kind: whole, or parts of a whole.
        {"params": [p for p in group if is_cut(p) == cut], "weight_decay": decay}
        for group, decay in ((decayed, config.weight_decay), (spared, 0.0))
        for cut in (False, True)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def learning_rate(config: Optimizer, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Give the rate of a step, counted from 0.

    The rate rises linearly over `warmup_steps`. Then
    - exponential: `decay_rate` once an epoch, counted from the first, not below `min_lr`. The
      reference warms up in the first epoch alone and jumps where that is shorter than the warm-up;
      here the warm-up goes on and the lower of both holds.
    - cosine: a half wave to `min_lr`, at every step; cosine_by_epoch, as in the reference: along
      the same wave once an epoch.
    - constant: stays.

    Args:
        config: Rates and schedule.
        step: Steps done before this one.
        steps_per_epoch: Steps that make an epoch.
        total_steps: Length of the run.
    """
    warming = step < config.warmup_steps
    rise = step / config.warmup_steps if warming else 1.0
    warm = config.warmup_lr + (config.lr - config.warmup_lr) * rise
    match config.schedule:
        case "exponential":
            epoch = step // steps_per_epoch
            return min(warm, max(config.min_lr, config.lr * config.decay_rate**epoch))
        case "cosine" | "cosine_by_epoch" if not warming:
            if config.schedule == "cosine_by_epoch":
                step = max(step - step % steps_per_epoch, config.warmup_steps)
            left = max(total_steps - config.warmup_steps, 1)
            wave = 1.0 + math.cos(math.pi * (step - config.warmup_steps) / left)
            return config.min_lr + 0.5 * (config.lr - config.min_lr) * wave
        case _:
            return warm if warming else config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
