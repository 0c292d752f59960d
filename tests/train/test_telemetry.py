"""What a step costs: phases that add up, nothing told of a step that warms up, means over a point."""

import statistics
from typing import Any

import pytest
import torch

from blip.train import telemetry
from blip.train.flops import flop_counter, matrix_rate
from blip.train.telemetry import STEP, Telemetry

CPU = torch.device("cpu")


def seconds(clock: list[float], watch: Telemetry, **phases: float) -> None:
    """Take a step whose phases last so long."""
    with watch.step():
        for phase in STEP[:-1]:
            clock[0] += phases.get(phase, 0.0)
            watch.lap(phase)
    for phase in ("logging", "checkpoint"):
        clock[0] += phases.get(phase, 0.0)
        watch.lap(phase)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: now[0])
    return now


def test_phases_are_means_and_add_up_to_the_step(clock: list[float]) -> None:
    watch = Telemetry(CPU, torch.float32, counts_flops=False)
    seconds(clock, watch, data=50.0, forward=50.0)  # warms up
    seconds(clock, watch, data=1.0, forward=2.0, backward=4.0, optimizer=0.5, logging=0.5)
    seconds(clock, watch, data=3.0, forward=2.0, backward=4.0, optimizer=0.5, checkpoint=60.0)
    told = watch.take(32)
    assert told["data_seconds"] == pytest.approx(2.0)
    assert told["forward_seconds"] == pytest.approx(2.0)
    assert told["backward_seconds"] == pytest.approx(4.0)
    assert told["optimizer_seconds"] == pytest.approx(0.5)
    assert told["logging_seconds"] == pytest.approx(0.25)
    assert told["checkpoint_seconds"] == pytest.approx(30.0)
    assert told["step_seconds"] == pytest.approx(8.75)
    assert told["images_per_second"] == pytest.approx(32 / 8.75)
    seconds(clock, watch, forward=5.0)
    assert watch.take(32)["step_seconds"] == pytest.approx(5.0)


def test_nothing_is_told_of_a_step_that_warms_up(clock: list[float]) -> None:
    watch = Telemetry(CPU, torch.float32, counts_flops=False)
    seconds(clock, watch, forward=50.0)
    assert set(watch.take(32)) == {"memory_gib"}


def test_share_of_the_peak_is_that_of_the_first_steps_arithmetic(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_peak", lambda *_: 1e6)
    watch = Telemetry(CPU, torch.float32)
    left, right = torch.ones(10, 20), torch.ones(20, 30)
    for size in (30, 5):  # later steps are not counted
        with watch.step():
            left @ right[:, :size]
            clock[0] += 0.5
            watch.lap("forward")
    assert watch.take(1)["flops_share"] == pytest.approx(2 * 10 * 20 * 30 / 0.5 / 1e6)


def test_attention_counts_on_this_device() -> None:
    q = torch.randn(2, 3, 7, 4, requires_grad=True)
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    forward = 2 * 2 * (2 * 3 * 7 * 7 * 4)
    assert counter.get_total_flops() == forward + forward * 5 // 2  # backward: five products of two


def test_the_rate_is_plausible_and_draws_no_chance() -> None:
    before = torch.get_rng_state()
    assert 1e8 < matrix_rate(CPU, torch.float32) < 1e14
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_phases_of_a_gpu_are_its_own() -> None:
    device = torch.device("cuda")
    watch = Telemetry(device, torch.float32)
    work = torch.randn(4096, 4096, device=device)
    whole = []
    for _ in range(3):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        watch.lap("data")
        with watch.step():
            for _ in range(20):
                work @ work
            watch.lap("forward")
        ended.record()
        whole.append((began, ended))
    told: dict[str, Any] = watch.take(1)
    torch.cuda.synchronize()
    expected = statistics.fmean(a.elapsed_time(b) / 1000 for a, b in whole[1:])
    assert told["step_seconds"] == pytest.approx(expected, rel=0.2)
    assert told["forward_seconds"] > 0.9 * told["step_seconds"]
    assert 0.2 < told["flops_share"] < 1.2
    assert told["memory_peak_gib"] > work.nbytes / 2**30
