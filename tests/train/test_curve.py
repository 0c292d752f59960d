"""The curve: what it warns of, and what it refuses to go on from."""

import logging
import math
from typing import Any

import pytest
import torch

from blip.errors import BlipError
from blip.train.curve import NAMED_KEYS, STUCK_ITM, Curve


def keys_of(step: int) -> list[str]:
    return [f"key-{step}-{row}" for row in range(40)]


def test_stuck_itm_is_said_once(points: Any, caplog: pytest.LogCaptureFixture) -> None:
    def run(losses: list[float], log_every: int = 10) -> int:
        caplog.clear()
        curve = Curve(points, keys_of, scaled=False)
        with caplog.at_level(logging.WARNING, "blip"):
            for step, loss in enumerate(losses, 1):
                value = torch.tensor(loss)
                curve.add(value, {"itm": value}, torch.tensor(1.0))
                if step % log_every == 0:
                    curve.close(step, 1e-3, {})
        return sum("contrast.uniform_negatives" in message for message in caplog.messages)

    assert pytest.approx(0.6365, abs=1e-4) == STUCK_ITM
    assert run([0.63] * 700) == 1
    assert run([0.9] * 100 + [0.64] * 320) == 1
    assert run([0.63] * 290) == 0
    assert run([0.63] * 200 + [0.4] * 200 + [0.63] * 200) == 0
    assert run([0.2] * 500) == 0
    # Single steps scatter; it is their mean that is stuck, however often it is told.
    scattered = [STUCK_ITM + 0.1 * math.sin(step) for step in range(1000)]
    assert [run(scattered, log_every) for log_every in (7, 50, 300, 500)] == [1, 1, 1, 1]
    assert run(scattered[:290], 290) == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named_with_its_images(
    points: Any, broken: float
) -> None:
    curve = Curve(points, keys_of, scaled=False)
    good = torch.tensor(2.0)
    for step in range(1, 9):
        loss = torch.tensor(broken) if step >= 6 else good
        curve.add(loss, {"itc": good, "itm": loss}, loss)
        if step == 2:
            curve.close(2, 1e-3, {})
    with pytest.raises(BlipError, match=r"step 6: the loss is not finite \(loss") as e:
        curve.settle(8)
    assert f"loss_itc 2, loss_itm {broken:g}, grad_norm {broken:g}" in str(e.value)
    named = ", ".join(keys_of(5)[:NAMED_KEYS])
    assert f"its images are {named} and 24 more: lower optimizer.lr" in str(e.value)


def test_gauges_are_told_and_kept_out_of_the_table(points: Any) -> None:
    curve = Curve(points, keys_of, scaled=False)
    curve.add(torch.tensor(1.0), {"lm": torch.tensor(1.0)}, torch.tensor(3.0))
    point = curve.close(1, 1e-3, {"perf/step_seconds": 0.5})
    assert point == {"step": 1, "loss": 1.0, "loss_lm": 1.0, "lr": 1e-3, "grad_norm": 3.0}
    assert points.told[0][1]["perf/step_seconds"] == 0.5
    assert points.told[0][1]["optim/grad_norm"] == 3.0


def test_a_gradient_that_overflows_is_no_fault_where_the_loss_is_scaled(points: Any) -> None:
    curve = Curve(points, keys_of, scaled=True)
    curve.add(torch.tensor(1.0), {}, torch.tensor(math.inf))
    curve.close(1, 1e-3, {})
    curve.add(torch.tensor(math.nan), {}, torch.tensor(1.0))
    with pytest.raises(BlipError, match="step 2: the loss is not finite"):
        curve.settle(2)
