from dataclasses import replace

import pytest
import torch

from blip.batch import QuestionBatch, StatementBatch
from blip.objectives import Position
from blip.objectives.finetune import (
    CaptioningObjective,
    NlvrObjective,
    RetrievalObjective,
    VqaObjective,
)


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


def test_negatives_are_weighed_in_full_precision(build, contrast, batch, monkeypatch):
    objective = RetrievalObjective(build("retrieval"), contrast(), True)
    weighed = []
    monkeypatch.setattr(
        "blip.objectives.finetune.negative_weights",
        lambda logits, *others: weighed.append(logits) or torch.ones_like(logits),
    )
    pairs = batch(4)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = objective.model.encode_image(pairs.images)
        contrasted = objective.contrast(objective.model, pairs, tokens, Position(0, 10))
        objective._draw(contrasted, pairs, Position(0, 10))
    images, texts = contrasted.image_embed, contrasted.text_embed
    expected = texts @ images.T / objective.model.temperature
    assert torch.equal(weighed[0], expected)
    assert torch.equal(weighed[1], expected.T)


def test_models_without_the_parts_are_refused(build, contrast):
    with pytest.raises(ValueError, match="captioning or pretrain, got retrieval"):
        CaptioningObjective(build("retrieval"), 0.1, 4)
    with pytest.raises(ValueError, match="parts retrieval, got captioning"):
        RetrievalObjective(build("captioning"), contrast(), True)
    with pytest.raises(ValueError, match="parts vqa, got pretrain"):
        VqaObjective(build("pretrain"), 0.1)
    with pytest.raises(ValueError, match="parts nlvr, got vqa"):
        NlvrObjective(build("vqa"))


def test_answers_count_by_their_weight_and_question(build, batch):
    """The loss of a batch is the mean over questions of the weighted sum over their answers."""
    model = build("vqa").eval()
    objective = VqaObjective(model, 0.1)
    pairs, answers = batch(2), batch(3, seed=1)
    weights, owner = torch.tensor([0.5, 0.2, 1.0]), torch.tensor([1, 0, 1])

    def loss(rows, chosen):
        questions = QuestionBatch(
            pairs.images[rows],
            pairs.token_ids[rows],
            pairs.attention_mask[rows],
            answers.token_ids[chosen],
            answers.attention_mask[chosen],
            weights[chosen],
            (owner[chosen][:, None] == torch.tensor(rows)).long().argmax(dim=1),
        )
        return objective(questions, Position(0, 1)).total

    whole = loss([0, 1], [0, 1, 2])
    parts = loss([0], [1]) + loss([1], [0]) + loss([1], [2])
    torch.testing.assert_close(whole, parts / 2, atol=1e-5, rtol=0)
    whole.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_statements_tell_the_two_images_apart(build, batch):
    model = build("nlvr").eval()
    objective = NlvrObjective(model)
    pairs = batch(3)
    images = torch.stack([pairs.images, pairs.images.flip(0)], dim=1)
    labels = torch.tensor([0, 1, 1])
    statements = StatementBatch(images, pairs.token_ids, pairs.attention_mask, labels)
    losses = objective(statements, Position(0, 1))
    swapped = replace(statements, images=images.flip(1))
    assert abs(objective(swapped, Position(0, 1)).total - losses.total) > 1e-7
    logits = model.classify(
        pairs.token_ids, pairs.attention_mask, model.project_images(model.encode_images(images))
    )
    assert losses.metrics["accuracy"] == (logits.argmax(1) == labels).float().mean()
    losses.total.backward()
    assert all(p.grad is not None for p in model.parameters())
