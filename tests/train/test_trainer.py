"""The loop: what it tells, what stops it, and that nothing it does depends on being interrupted."""

import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip.config import Training
from blip.errors import TERMINATED, BlipError
from blip.files import read_json, write_json
from blip.objectives import Losses
from blip.tracker import NullTracker
from blip.train.curve import write_curves
from blip.train.telemetry import Telemetry
from blip.train.trainer import fit, total_steps

Build = Callable[..., Training]


def weights(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


class Interrupt:
    """Batches of a loader; while one is fetched, something happens."""

    def __init__(self, loader: Any, at: int, what: Callable[[], Any]) -> None:
        self.loader, self.at, self.what = loader, at, what
        self.steps_per_epoch = loader.steps_per_epoch
        self.keys_of = loader.keys_of

    def iterate(self, start: int, stop: int) -> Any:
        for step, batch in enumerate(self.loader.iterate(start, stop), start):
            if step == self.at:
                self.what()
            yield batch


def test_tells_means_and_rates(toy: Any, training: Build, points: Any, tmp_path: Path) -> None:
    objective, loader = toy
    before = weights(objective)
    curve = fit(objective, loader, training(), points, tmp_path)
    assert [step for step, _ in points.told] == [3, 6, 9, 12, 15, 18, 20]
    assert [point["step"] for point in curve] == [step for step, _ in points.told]
    _, first = points.told[0]
    assert first["train/loss"] == pytest.approx(first["train/loss_itm"])
    assert first["train/temperature"] == pytest.approx(0.07)
    assert first["optim/lr"] == pytest.approx(1e-6 + (5e-4 - 1e-6) * 2 / 20)
    assert first["optim/grad_norm"] > 0
    assert first["perf/images_per_second"] > 0
    phases = ("data", "forward", "backward", "optimizer", "logging")
    assert all(first[f"perf/{phase}_seconds"] >= 0 for phase in phases)
    whole = sum(first[f"perf/{phase}_seconds"] for phase in phases)
    assert first["perf/step_seconds"] == pytest.approx(whole)
    assert "perf/checkpoint_seconds" not in first
    assert points.told[1][1]["perf/checkpoint_seconds"] > 0
    assert 0 < first["perf/flops_share"] < 1
    assert 0.01 < first["perf/memory_gib"] < 100
    changed = [not torch.equal(a, b) for a, b in zip(before, weights(objective), strict=True)]
    names = list(objective.state_dict())
    assert [n for n, c in zip(names, changed, strict=True) if not c] == ["frozen"]


def test_curve_is_a_table(toy: Any, training: Build, points: Any, tmp_path: Path) -> None:
    curve = fit(*toy, training(), points, tmp_path / "run")
    write_curves(curve, tmp_path / "curves.csv")
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0] == "step,loss,loss_itm,temperature,lr,grad_norm"
    assert [float(v) for v in lines[1].split(",")] == list(curve[0].values())
    assert len(lines) == 8


def test_length(training: Build) -> None:
    assert total_steps(training(), 7) == 20
    assert total_steps(training(steps=None, epochs=3), 7) == 21


def test_clipping_bounds_the_gradient(
    toy: Any, training: Build, points: Any, tmp_path: Path
) -> None:
    objective, loader = toy
    optimizer = training().optimizer.model_copy(update={"clip_norm": 1e-3})
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def seen(self: Any, *args: Any) -> Any:
        grads = [p.grad for g in self.param_groups for p in g["params"]]
        norms.append(float(nn.utils.get_total_norm(grads)))
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", seen)
        fit(objective, loader, training(optimizer=optimizer), points, tmp_path)
    assert max(norms) <= 1e-3 * 1.001
    assert points.told[0][1]["optim/grad_norm"] > 1e-3  # before clipping


def test_bf16_computes_in_bf16(toy: Any, training: Build, points: Any, tmp_path: Path) -> None:
    objective, loader = toy
    seen: set[torch.dtype] = set()
    objective.first.register_forward_hook(lambda m, i, o: seen.add(o.dtype))
    fit(objective, loader, training(steps=2, precision="bf16"), points, tmp_path)
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("stop", [0, 4, 5, 12, 19])
def test_sigterm_finishes_the_step_and_goes_on_in_the_same_bits(
    toy: Any, training: Build, points: Any, tmp_path: Path, stop: int
) -> None:
    objective, loader = toy
    state = {n: t.clone() for n, t in objective.state_dict().items()}
    random = torch.get_rng_state()
    expected = fit(objective, loader, training(), points, tmp_path / "whole")
    whole = weights(objective)

    objective.load_state_dict(state)
    torch.set_rng_state(random)
    killed = Interrupt(loader, stop, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        fit(objective, killed, training(), NullTracker(), tmp_path / "killed")
    assert left.value.code == TERMINATED == 143
    newest = max((tmp_path / "killed/checkpoints").iterdir()).name
    assert newest == f"step-{stop + 1:08}"

    torch.manual_seed(99)
    objective.load_state_dict({n: torch.full_like(t, 3) for n, t in state.items()})
    found = fit(objective, loader, training(), NullTracker(), tmp_path / "killed")
    assert found == expected
    assert all(map(torch.equal, weights(objective), whole))


def test_ctrl_c_saves_and_a_second_one_does_not_wait(
    toy: Any, training: Build, tmp_path: Path
) -> None:
    objective, loader = toy
    once = Interrupt(loader, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(objective, once, training(), NullTracker(), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    again = Interrupt(loader, 7, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        fit(objective, again, training(), NullTracker(), tmp_path)
    assert max((tmp_path / "checkpoints").iterdir()).name == "step-00000005"


def test_a_second_training_in_the_same_folder_is_refused(
    toy: Any, training: Build, tmp_path: Path
) -> None:
    objective, loader = toy
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(BlipError) as error:
            fit(objective, loader, training(), NullTracker(), tmp_path)
        refused.append(str(error.value))

    fit(objective, Interrupt(loader, 2, second), training(), NullTracker(), tmp_path)
    assert refused == [
        f"{tmp_path}: another training is at work here already: wait for it, or stop it first"
    ]


def test_signal_handlers_are_put_back(toy: Any, training: Build, tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    fit(*toy, training(steps=2), NullTracker(), tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_trains_outside_the_main_thread(toy: Any, training: Build, tmp_path: Path) -> None:
    curves: list[Any] = []
    thread = threading.Thread(
        target=lambda: curves.append(fit(*toy, training(), NullTracker(), tmp_path))
    )
    thread.start()
    thread.join()
    assert curves[0][-1]["step"] == 20


def test_finished_run_is_not_trained_again(
    toy: Any, training: Build, points: Any, tmp_path: Path
) -> None:
    objective, loader = toy
    curve = fit(objective, loader, training(), points, tmp_path)
    trained = weights(objective)
    with torch.no_grad():
        objective.first.weight.zero_()
    assert fit(objective, loader, training(), NullTracker(), tmp_path) == curve
    assert all(map(torch.equal, weights(objective), trained))


def test_infinite_loss_names_its_step_and_keeps_the_last_good_checkpoint(
    toy: Any, training: Build, points: Any, tmp_path: Path
) -> None:
    objective, loader = toy

    def poison() -> None:
        with torch.no_grad():
            objective.second.bias[0] = math.nan

    broken = Interrupt(loader, 8, poison)
    with pytest.raises(
        BlipError, match=r"step 9: the loss is not finite .*lower optimizer.lr"
    ) as e:
        fit(objective, broken, training(log_every=100), points, tmp_path)
    assert "loss nan, loss_itm nan, temperature 0.07" in str(e.value)
    assert "images are image-8-0, image-8-1, image-8-2, image-8-3:" in str(e.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_a_gradient_that_is_not_finite_is_seen_before_the_checkpoint_that_would_hold_it(
    toy: Any, training: Build, points: Any, tmp_path: Path
) -> None:
    """All losses stay finite: the weight that breaks has no part in them."""
    objective, loader = toy
    objective.aside = nn.Parameter(torch.zeros(2))
    broken = torch.zeros(2)
    objective.aside.register_hook(lambda gradient: broken)
    forward = objective.forward

    def with_aside(batch: Any, position: Any) -> Any:
        losses = forward(batch, position)
        return Losses(losses.total + (0 * objective.aside.nan_to_num()).sum(), losses.metrics)

    objective.forward = with_aside
    at_eight = Interrupt(loader, 8, lambda: broken.fill_(math.nan))
    with pytest.raises(BlipError, match=r"step 9: the gradient is not finite .*grad_norm nan") as e:
        fit(objective, at_eight, training(log_every=100), points, tmp_path)
    assert "images are image-8-0" in str(e.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_counting_the_arithmetic_changes_no_bit(
    toy: Any, training: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, loader = toy
    state = {n: t.clone() for n, t in objective.state_dict().items()}
    random = torch.get_rng_state()
    counted = fit(objective, loader, training(), NullTracker(), tmp_path / "counted")
    after = weights(objective)
    objective.load_state_dict(state)
    torch.set_rng_state(random)
    monkeypatch.setattr(
        "blip.train.step.Telemetry",
        lambda *args, counts_flops: Telemetry(*args, counts_flops=False),
    )
    assert fit(objective, loader, training(), NullTracker(), tmp_path / "plain") == counted
    assert all(map(torch.equal, weights(objective), after))


def test_the_manifest_travels_with_the_checkpoint(
    toy: Any, training: Build, tmp_path: Path
) -> None:
    write_json(tmp_path / "manifest.json", {"code": {"commit": "abc"}})
    fit(*toy, training(), NullTracker(), tmp_path)
    state = read_json(tmp_path / "checkpoints/step-00000020/state.json")
    assert state["about"]["code"] == {"commit": "abc"}
    assert state["about"]["training"]["batch_size"] == training().batch_size
