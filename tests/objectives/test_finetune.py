import pytest
import torch

from blip.objectives import Position
from blip.objectives.finetune import CaptioningObjective, RetrievalObjective


def test_captioning_does_not_learn_the_prompt(build, batch):
    model = build("captioning")
    pairs = batch(3)
    captioning = CaptioningObjective(model, 0.1, prompt_length=4)
    before = captioning(pairs, Position(0, 10)).total.item()
    pairs.token_ids[:, 0] = 399  # the first token is read as [DEC] whatever it is
    assert captioning(pairs, Position(0, 10)).total.item() == before
    losses = captioning(pairs, Position(0, 10))
    assert set(losses.metrics) == {"lm"}
    losses.total.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_captioning_takes_a_pretrained_model(build, batch):
    losses = CaptioningObjective(build("pretrain"), 0.1, 4)(batch(2), Position(0, 1))
    assert torch.isfinite(losses.total)


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [4, 4, 9, 9], [4, 4, 4, 9], [4, 4, 4, 4]])
def test_retrieval_takes_any_mix_of_images(build, contrast, batch, ids):
    model = build("retrieval")
    objective = RetrievalObjective(model, contrast(uniform_negatives=1), True)
    for step in range(2):
        losses = objective(batch(4, image_ids=ids), Position(step, 10))
        assert torch.isfinite(losses.total)
        assert {"itc", "itm", "itm_accuracy"} <= set(losses.metrics)
    losses.total.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert objective.contrast.queue.image_ids.tolist()[:8] == ids + ids


def test_retrieval_keeps_the_temperature_of_its_model(build, contrast):
    model = build("retrieval")
    with torch.no_grad():
        model.temperature.fill_(0.02)
    RetrievalObjective(model, contrast(temperature=0.07), True)
    assert model.temperature.item() == pytest.approx(0.02)


def test_models_without_the_parts_are_refused(build, contrast):
    with pytest.raises(ValueError, match="text decoder"):
        CaptioningObjective(build("retrieval"), 0.1, 4)
    with pytest.raises(ValueError, match="'captioning'"):
        RetrievalObjective(build("captioning"), contrast(), True)
