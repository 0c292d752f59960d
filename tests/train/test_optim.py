"""The schedules' formulas and bounds; what is decayed."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from blip.config import Optimizer
from blip.train.optim import build_optimizer, learning_rate

PAPER: dict[str, Any] = {
    "lr": 3e-4,
    "min_lr": 1e-6,
    "warmup_lr": 1e-6,
    "warmup_steps": 3000,
    "schedule": "exponential",
    "decay_rate": 0.9,
    "weight_decay": 0.05,
    "decay_all": True,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "clip_norm": 0.0,
}


def optimizer(**changes: Any) -> Optimizer:
    return Optimizer(**{**PAPER, **changes})


def test_formulas() -> None:
    assert learning_rate(optimizer(), 1500, 10**4, 10**5) == pytest.approx((3e-4 + 1e-6) / 2)
    assert learning_rate(optimizer(), 4 * 5000, 5000, 10**6) == pytest.approx(3e-4 * 0.9**4)
    assert learning_rate(optimizer(), 90 * 5000, 5000, 10**6) == 1e-6
    cosine = optimizer(warmup_steps=0, min_lr=0.0, schedule="cosine")
    assert learning_rate(cosine, 25, 10, 100) == pytest.approx(1.5e-4 * (1 + 2**-0.5))


@given(
    st.sampled_from(["cosine", "exponential", "constant"]),
    st.integers(0, 50),
    st.integers(1, 40),
    st.integers(51, 200),
)
def test_rates_rise_then_fall_between_their_bounds(
    schedule: str, warmup_steps: int, steps_per_epoch: int, total: int
) -> None:
    config = optimizer(schedule=schedule, warmup_steps=warmup_steps, decay_rate=1.0)
    rates = [learning_rate(config, step, steps_per_epoch, total) for step in range(total)]
    assert rates[:warmup_steps] == sorted(rates[:warmup_steps])
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)
    assert rates[warmup_steps] == config.lr
    assert all(config.min_lr <= rate <= config.lr for rate in rates)


def test_short_first_epoch_does_not_cut_the_warmup() -> None:
    config = optimizer(warmup_steps=100)
    rates = [learning_rate(config, step, 10, 1000) for step in range(1000)]
    assert max(b / a for a, b in itertools.pairwise(rates[10:])) < 1.1


def test_groups() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    module[0].weight.requires_grad_(False)
    (group,) = build_optimizer(module, optimizer()).param_groups
    assert [tuple(p.shape) for p in group["params"]] == [(4,), (4,), (4,)]
    assert group["weight_decay"] == 0.05
    module[0].weight.requires_grad_(True)
    decayed, spared = build_optimizer(module, optimizer(decay_all=False)).param_groups
    assert [p.ndim for p in decayed["params"]] == [2]
    assert [p.ndim for p in spared["params"]] == [1, 1, 1]
    assert spared["weight_decay"] == 0.0


def test_step_is_adamw() -> None:
    """One step against the formula of Loshchilov & Hutter, algorithm 2."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 2.0)
    adamw = build_optimizer(module, optimizer(lr=0.1))
    module.weight.grad = torch.full((1, 1), 3.0)
    adamw.step()
    assert module.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.05) - 0.1, abs=1e-6)
