"""The schedules against the reference's numbers; what is decayed."""

import itertools
import json
from pathlib import Path
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


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden/schedules.json").read_text())


def test_warmup_equals_the_reference(golden: dict[str, Any]) -> None:
    for step, rate in golden["pretrain_warmup"].items():
        assert learning_rate(optimizer(), int(step), 10**6, 2 * 10**7) == pytest.approx(rate, 1e-12)


def test_decay_per_epoch_equals_the_reference(golden: dict[str, Any]) -> None:
    for epoch, rate in enumerate(golden["pretrain_step_per_epoch"]):
        steps = [epoch * 5000, epoch * 5000 + 4999] if epoch else [4999]
        for step in steps:
            assert learning_rate(optimizer(), step, 5000, 10**6) == pytest.approx(rate, 1e-12)


@pytest.mark.parametrize(
    ("name", "lr", "epochs"),
    [
        ("cosine_retrieval_1e-5_6ep", 1e-5, 6),
        ("cosine_caption_1e-5_5ep", 1e-5, 5),
        ("cosine_vqa_2e-5_10ep", 2e-5, 10),
        ("cosine_nlvr_3e-5_15ep", 3e-5, 15),
    ],
)
def test_cosine_meets_the_reference_at_every_epoch(
    golden: dict[str, Any], name: str, lr: float, epochs: int
) -> None:
    config = optimizer(lr=lr, min_lr=0.0, warmup_steps=0, schedule="cosine")
    rates = [learning_rate(config, epoch * 37, 37, epochs * 37) for epoch in range(epochs)]
    assert rates == pytest.approx(golden[name], rel=1e-12)


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
