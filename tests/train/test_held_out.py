"""Evaluation while training: it leaves no trace, finds the best, and ends the run in time."""

import errno
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blip.config import HeldOut, Training
from blip.errors import ConfigError
from blip.objectives import Position
from blip.tracker import NullTracker
from blip.train.held_out import Best, held_out
from blip.train.snapshot import Snapshot
from blip.train.trainer import fit

Build = Callable[..., Training]


def settings(**changes: Any) -> HeldOut:
    values = {"every": 4, "batches": 3, "metric": "loss", "best": "lowest", "patience": 0}
    return HeldOut.model_validate(values | changes)


def weights(objective: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in objective.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_evaluation_leaves_no_trace(toy: Any) -> None:
    objective, loader = toy
    evaluate = held_out(loader, settings())
    before, chance = weights(objective), torch.get_rng_state()
    first = evaluate(objective, Position(0, 7))
    assert same(weights(objective), before)
    assert torch.equal(torch.get_rng_state(), chance)
    assert objective.training
    torch.rand(3)
    assert evaluate(objective, Position(0, 7)) == first
    assert set(first) == {"loss", "loss_itm", "temperature"}
    assert first["loss"] == pytest.approx(first["loss_itm"])


def test_an_evaluation_asks_nothing_of_gpus_it_does_not_use(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail(f"GPU {device}"))
    objective, loader = toy
    assert held_out(loader, settings())(objective, Position(0, 7))["loss"] > 0


def test_training_is_the_same_with_evaluations(toy: Any, training: Build, tmp_path: Path) -> None:
    objective, loader = toy
    start, chance = weights(objective), torch.get_rng_state()
    curve = fit(objective, loader, training(), NullTracker(), tmp_path / "without")
    objective.load_state_dict(start)
    torch.set_rng_state(chance)
    watched = training(held_out=settings(every=5))
    evaluate = held_out(loader, watched.held_out)
    assert curve == fit(
        objective, loader, watched, NullTracker(), tmp_path / "with", evaluate=evaluate
    )


class Script:
    """Evaluations that come out as written."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self, objective: Any, position: Position) -> dict[str, float]:
        self.seen.append(weights(objective))
        return {"loss": self.values[position.step // 4]}


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_best_weights_stay(
    toy: Any, training: Build, points: Any, tmp_path: Path, ema_decay: float | None
) -> None:
    objective, loader = toy
    script = Script(3.0, 1.0, 2.0, 4.0, 5.0)
    config = training(held_out=settings(), ema_decay=ema_decay)
    curve = fit(objective, loader, config, points, tmp_path, evaluate=script)
    assert curve[-1]["step"] == 20
    trained = [n for n, p in objective.named_parameters() if p.requires_grad]
    found, expected = weights(objective), script.seen[1]
    assert all(torch.equal(found[name], expected[name]) for name in trained)
    told = [(step, v["held_out/loss"]) for step, v in points.told if "held_out/loss" in v]
    assert told == [(4, 3.0), (8, 1.0), (12, 2.0), (16, 4.0), (20, 5.0)]


def test_a_run_without_progress_ends_early(
    toy: Any, training: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objective, loader = toy
    script = Script(3.0, 1.0, 2.0, 4.0)
    config = training(held_out=settings(patience=2))
    with caplog.at_level(logging.INFO, "blip"):
        curve = fit(objective, loader, config, NullTracker(), tmp_path, evaluate=script)
    assert curve[-1]["step"] == 16
    assert "no better loss than 1 of step 8 in 2 evaluations: training ends" in caplog.text
    ended = weights(objective)
    with torch.no_grad():
        objective.first.weight.zero_()
    again = fit(objective, loader, config, NullTracker(), tmp_path, evaluate=Script())
    assert again == curve
    assert same(weights(objective), ended)


def test_killed_between_evaluations_ends_in_the_same_bits(
    toy: Any, training: Build, tmp_path: Path
) -> None:
    objective, loader = toy
    start, chance = weights(objective), torch.get_rng_state()
    values = 3.0, 1.0, 2.0, 4.0, 5.0
    config = training(held_out=settings(), ema_decay=0.9)
    curve = fit(
        objective, loader, config, NullTracker(), tmp_path / "whole", evaluate=Script(*values)
    )
    whole = weights(objective)

    class Killed(Script):
        def __call__(self, objective: Any, position: Position) -> dict[str, float]:
            if position.step == 11:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(objective, position)

    objective.load_state_dict(start)
    torch.set_rng_state(chance)
    folder = tmp_path / "killed"
    with pytest.raises(SystemExit):
        fit(objective, loader, config, NullTracker(), folder, evaluate=Killed(*values))
    assert curve == fit(objective, loader, config, NullTracker(), folder, evaluate=Script(*values))
    assert same(weights(objective), whole)


def test_best_weights_that_could_not_be_saved_make_way_for_the_next(
    toy: Any,
    training: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The disk is full at step 8 alone, whose evaluation is the best."""
    write = Snapshot.write

    def full(self: Snapshot, path: Path) -> str:
        if path.parent.name == ".step-00000008.partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, path)

    monkeypatch.setattr(Snapshot, "write", full)
    objective, loader = toy
    script = Script(3.0, 1.0, 2.0, 4.0, 5.0)
    config = training(held_out=settings(patience=3))
    with caplog.at_level(logging.WARNING, "blip"):
        curve = fit(objective, loader, config, NullTracker(), tmp_path, evaluate=script)
    assert curve[-1]["step"] == 20
    assert "the best weights so far, of step 8, are not saved: others take over" in caplog.text
    assert same(weights(objective), script.seen[2])


def test_training_draws_masks_and_evaluation_does_not(
    toy: Any, training: Build, tmp_path: Path
) -> None:
    objective, loader = toy
    modes: list[bool] = []
    objective.dropout.register_forward_hook(lambda module, i, o: modes.append(module.training))
    config = training(steps=4, held_out=settings(batches=2))
    evaluate = held_out(loader, config.held_out)
    fit(objective.eval(), loader, config, NullTracker(), tmp_path, evaluate=evaluate)
    assert modes == [True] * 4 + [False] * 2


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'los' is not measured; there are accuracy, loss$"):
        Best(settings(metric="los")).take(1, {"loss": 1.0, "accuracy": 0.5})


def test_best_may_be_the_highest() -> None:
    best = Best(settings(best="highest", patience=1))
    assert [best.take(step, {"loss": v}) for step, v in enumerate((1.0, 2.0, 2.0))] == [1, 1, 0]
    assert (best.step, best.value, best.stops) == (1, 2.0, True)
