"""The loop: what it tells, what stops it, and that nothing it does depends on being interrupted."""

import logging
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
from blip.errors import BlipError
from blip.tracker import NullTracker
from blip.train.curve import STUCK_ITM, Curve, write_curves
from blip.train.trainer import TERMINATED, fit, total_steps

Build = Callable[..., Training]


def weights(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


class Interrupt:
    """Batches of a loader; while one is fetched, something happens."""

    def __init__(self, loader: Any, at: int, what: Callable[[], Any]) -> None:
        self.loader, self.at, self.what = loader, at, what
        self.steps_per_epoch = loader.steps_per_epoch

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
    assert 0 <= first["perf/data_seconds"] <= first["perf/step_seconds"]
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
    with pytest.raises(BlipError, match=r"step 9: the loss is not finite .*lower optimizer.lr"):
        fit(objective, broken, training(log_every=100), points, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_stuck_itm_is_said_once(
    points: Any, caplog: pytest.LogCaptureFixture, training: Build
) -> None:
    def run(losses: list[float]) -> int:
        caplog.clear()
        curve = Curve(points)
        with caplog.at_level(logging.WARNING, "blip"):
            for step, loss in enumerate(losses, 1):
                value = torch.tensor(loss)
                curve.add(value, {"itm": value}, 0.1, 0.0)
                if step % 10 == 0:
                    curve.close(step, 1e-3, 1.0, 32, True)
        return sum("contrast.uniform_negatives" in message for message in caplog.messages)

    assert pytest.approx(0.6365, abs=1e-4) == STUCK_ITM
    assert run([0.63] * 700) == 1
    assert run([0.9] * 100 + [0.64] * 320) == 1
    assert run([0.63] * 290) == 0
    assert run([0.63] * 200 + [0.4] * 200 + [0.63] * 200) == 0
    assert run([0.2] * 500) == 0


def test_checkpointing_does_not_disturb_the_reported_rate(points: Any) -> None:
    curve = Curve(points)
    for seconds in [0.1] * 9 + [5.0]:
        curve.add(torch.tensor(1.0), {}, seconds, seconds / 10)
    curve.close(10, 1e-3, 1.0, 32, True)
    assert points.told[0][1]["perf/images_per_second"] == pytest.approx(320)
    assert points.told[0][1]["perf/data_seconds"] == pytest.approx(0.01)
