"""NLVR2 against the reference's: every layer, logits, loss, gradients; and how it is begun."""

import pytest
import torch

from blip.batch import StatementBatch
from blip.models.checkpoint import load_model, save_model
from blip.models.convert import official_names
from blip.objectives import Position
from blip.objectives.finetune import NlvrObjective

TOLERANCE = 1e-5


@pytest.fixture
def prepared(golden, tiny_model):
    def load(name):
        reference = golden(name)
        stacked = reference["in/pixel_values_stacked_image0_then_image1"]
        images = stacked.unflatten(0, (2, -1)).transpose(0, 1)
        return reference, tiny_model("nlvr", reference.under("sd/")), images

    return load


def test_states_of_every_layer(prepared):
    reference, model, images = prepared("nlvr")
    states = []
    stages = [model.text_encoder.embeddings, *model.text_encoder.layers]
    hooks = [s.register_forward_hook(lambda *call: states.append(call[-1])) for s in stages]
    ids, mask = reference["in/input_ids"], reference["in/attention_mask"]
    model.encode_pairs(ids, mask, model.project_images(model.encode_images(images)))
    for hook in hooks:
        hook.remove()
    assert len(states) == len([k for k in reference.tensors if k.startswith("out/hidden")])
    for layer, state in enumerate(states):  # measured: 3.2e-6
        expected = reference[f"out/hidden{layer}"]
        torch.testing.assert_close(state, expected, atol=TOLERANCE, rtol=0)


def test_logits_loss_and_gradients(prepared, worst_difference):
    reference, model, images = prepared("nlvr")
    ids, mask = reference["in/input_ids"], reference["in/attention_mask"]
    logits = model.classify(ids, mask, model.project_images(model.encode_images(images)))
    expected = reference["out/logits"]  # measured: 1.0e-6
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    batch = StatementBatch(images, ids, mask, reference["in/targets"])
    losses = NlvrObjective(model)(batch, Position(0, 1))
    losses.total.backward()
    expected = reference["out/loss"]  # measured: 3.0e-7
    torch.testing.assert_close(losses.total.detach(), expected, atol=TOLERANCE, rtol=0)
    gradients = [(name, p.grad) for name, p in model.named_parameters()]
    assert worst_difference(gradients, reference.under("grad/")) < TOLERANCE  # measured: 7.1e-7


@torch.inference_mode()
def test_logits_of_statements_in_any_order(prepared):
    """Statements name their images, which were projected before; one stands twice."""
    reference, model, images = prepared("nlvr")
    order = torch.tensor([2, 0, 1, 0])
    ids, mask = reference["in/input_ids"][order], reference["in/attention_mask"][order]
    logits = model.classify(ids, mask, model.project_images(model.encode_images(images)), order)
    expected = reference["out/logits"][order]  # measured: 8.4e-7
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


def test_logits_of_a_model_begun_from_one_image(prepared):
    reference, model, images = prepared("nlvr_from_base")
    ids, mask = reference["in/input_ids"], reference["in/attention_mask"]
    logits = model.classify(ids, mask, model.project_images(model.encode_images(images)))
    expected = reference["out/logits"]  # measured: 1.7e-6
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


def test_a_model_begins_from_one_image_as_the_reference_does(prepared, tiny_model, tmp_path):
    """All is copied, both streams from the one there is, but what the reference draws too."""
    reference, began, _ = prepared("nlvr_from_base")
    save_model(tiny_model("features", reference.under("base_sd/")), tmp_path)
    model = load_model(tmp_path, "nlvr")
    expected = began.state_dict()
    drawn = set()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, expected[name]):
            drawn.update(official_names(name))
    assert drawn == set(reference.meta["missing_keys"])
