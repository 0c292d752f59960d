"""Learning rates and alpha of every recorded step, under the settings of the paper's preset."""

import json
import re

import pytest

from blip.config import PRESETS, load_config
from blip.objectives import Position
from blip.objectives.contrast import ramped_alpha
from blip.train.optim import learning_rate

EXACT = 1e-12  # the rates go down to 3e-7; measured: 4e-21


@pytest.fixture
def recorded(shared):
    return json.loads((shared / "golden" / "schedules.json").read_text())


@pytest.fixture
def preset(monkeypatch):
    monkeypatch.setenv("BLIP_DATA", "unread")
    return load_config(PRESETS / "base_14m.yaml")


def test_warmup(recorded, preset):
    longest = max(map(int, recorded["pretrain_warmup"])) + 1  # all within the first epoch
    for step, rate in recorded["pretrain_warmup"].items():
        ours = learning_rate(preset.pretrain.optimizer, int(step), longest, longest)
        assert ours == pytest.approx(rate, abs=EXACT), step


def test_step_decay(recorded, preset):
    optimizer = preset.pretrain.optimizer
    steps = optimizer.warmup_steps + 7
    rates = recorded["pretrain_step_per_epoch"]
    for epoch, rate in enumerate(rates):
        # The rate of the first epoch is that behind its warm-up.
        first = epoch * steps if epoch else optimizer.warmup_steps
        for step in (first, (epoch + 1) * steps - 1):
            ours = learning_rate(optimizer, step, steps, len(rates) * steps)
            assert ours == pytest.approx(rate, abs=EXACT), epoch


def test_cosine(recorded, preset):
    cases = {name: rates for name, rates in recorded.items() if name.startswith("cosine_")}
    assert cases
    for name, rates in cases.items():
        lr, epochs = re.search(r"_([\d.e-]+)_(\d+)ep$", name).groups()
        assert len(rates) == int(epochs)
        optimizer = preset.finetune.retrieval.optimizer.model_copy(update={"lr": float(lr)})
        steps = 37
        for place in (0, steps - 1):  # one rate for a whole epoch
            ours = [
                learning_rate(optimizer, epoch * steps + place, steps, len(rates) * steps)
                for epoch in range(len(rates))
            ]
            assert ours == pytest.approx(rates, abs=EXACT), name


@pytest.mark.parametrize("stage", ["pretrain", "retrieval"])
def test_alpha(recorded, preset, stage):
    training = preset.pretrain if stage == "pretrain" else preset.finetune.retrieval
    ((name, cases),) = ((n, c) for n, c in recorded.items() if n.startswith(f"alpha_{stage}_len"))
    length = int(name.rpartition("len")[2])
    for place, alpha in cases.items():
        epoch, step = map(int, place.split(","))
        ours = ramped_alpha(training.contrast, Position(epoch * length + step, length))
        assert ours == pytest.approx(alpha, abs=EXACT), place
