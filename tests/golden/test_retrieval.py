"""A step of retrieval fine-tuning against the reference's: losses, gradients, queue with ids."""

import pytest
import torch

from blip.batch import Batch
from blip.objectives import Position
from blip.objectives.finetune import RetrievalObjective
from blip.objectives.itm import Negatives, negative_weights

TOLERANCE = 1e-5


@pytest.fixture
def prepared(golden, tiny_model, contrast, restore):
    reference = golden("retrieval_train_1rank")
    state = reference.under("sd/")

    def build(negative_all_rank):
        model = tiny_model("retrieval", state)
        settings = contrast(state, float(reference["in/alpha"]))
        objective = RetrievalObjective(model, settings, negative_all_rank).eval()
        restore(objective.contrast, state)
        return objective

    inputs = reference.under("in/")
    batch = Batch(
        inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"], inputs["idx"]
    )
    return reference, build, batch


@pytest.mark.parametrize("all_rank", [False, True])
def test_losses_and_queue(prepared, all_rank):
    reference, build, batch = prepared
    expected = reference.under(f"all_rank_{all_rank}/")
    objective = build(all_rank)
    negatives = Negatives(expected["neg_image_idx"], expected["neg_text_idx"])
    objective.begin_step()
    losses = objective(batch, Position(0, 1), negatives)
    for ours, theirs in (("itc", "ita"), ("itm", "itm")):  # measured: 3e-7
        loss = expected[f"loss_{theirs}"]
        torch.testing.assert_close(losses.metrics[ours], loss, atol=TOLERANCE, rtol=0)
    queue = objective.contrast.queue
    assert queue.position.item() == expected["after_ptr"].item()
    assert queue.image_ids.tolist() == expected["after_idx_queue"][0].tolist()
    images = expected["after_image_queue"]
    torch.testing.assert_close(queue.images.T, images, atol=TOLERANCE, rtol=0)


def test_gradients(prepared, worst_difference):
    reference, build, batch = prepared
    indices = reference.under("all_rank_False/")
    objective = build(False)
    negatives = Negatives(indices["neg_image_idx"], indices["neg_text_idx"])
    objective.begin_step()
    objective(batch, Position(0, 1), negatives).total.backward()
    gradients = [(name, p.grad) for name, p in objective.model.named_parameters()]
    official = reference.under("grad/")
    assert worst_difference(gradients, official) < TOLERANCE  # measured: 3.8e-6 (of 17)


def test_negative_weights_leave_out_the_same_image(prepared):
    reference, build, batch = prepared
    expected = reference.under("all_rank_False/")
    model = build(False).model
    images = model.embed_image(model.encode_image(batch.images))
    texts = model.embed_text(model.encode_text(batch.token_ids, batch.attention_mask))
    same = batch.image_ids[:, None] == batch.image_ids
    assert same.sum() > len(batch)  # an image is there twice
    for logits, name in ((images @ texts.T, "i2t"), (texts @ images.T, "t2i")):
        weights = negative_weights(logits / model.temperature, same, 0.0, uniform=False)
        assert (weights[same] == 0).all()
        torch.testing.assert_close(weights, expected[f"weights_{name}"], atol=TOLERANCE, rtol=0)
