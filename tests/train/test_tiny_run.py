"""Same machine, same configuration: same bits, stopped or not; the kept curve on any machine."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from blip.data.loader import PairLoader
from blip.train.curve import Point

from .tiny_run import RECORDED, STEPS, make_data, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def curve(data: list[Path]) -> list[Point]:
    return train(data, data[0].parent / "runs/whole")


def test_curve_is_the_recorded_one(curve: list[Point]) -> None:
    """Measured: equal to the bit on the machine that recorded it, else no value differs by more
    than 4.4e-6 of itself (the gradient's norm, without vector instructions; losses: 5.6e-7)."""
    recorded = json.loads(RECORDED.read_text())
    assert len(curve) == len(recorded) == STEPS
    for found, expected in zip(curve, recorded, strict=True):
        assert found == pytest.approx(expected, rel=5e-5, abs=5e-8)


def test_stopped_and_resumed_it_is_the_same_to_the_bit(
    data: list[Path], curve: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the step whose arithmetic is counted, another one in the resumed run, has the same bits."""
    iterate = PairLoader.iterate

    def stopped(self: PairLoader, start: int, stop: int) -> Any:
        for step, batch in enumerate(iterate(self, start, stop), start):
            if step == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    run_dir = data[0].parent / "runs/stopped"
    with monkeypatch.context() as patch:
        patch.setattr(PairLoader, "iterate", stopped)
        with pytest.raises(SystemExit):
            train(data, run_dir)
    assert max((run_dir / "checkpoints").iterdir()).name == "step-00000010"
    assert train(data, run_dir) == curve
