"""One and three steps of pre-training against the reference's: losses, gradients, state."""

import json
import re

import pytest
import torch

from blip.batch import Batch
from blip.models.convert import official_names
from blip.objectives import Position
from blip.objectives.itc import soft_targets
from blip.objectives.itm import Negatives, negative_weights
from blip.objectives.pretrain import NEGATIVE_FLOOR, PretrainObjective

TOLERANCE = 1e-5


@pytest.fixture
def prepared(golden, tiny_model, contrast, restore):
    """The objective in the state before the recorded steps."""
    reference = golden("pretrain_1rank")
    state = reference.under("sd/")

    def build():
        model = tiny_model("pretrain", state)
        settings = contrast(state, reference.meta["alpha"])
        objective = PretrainObjective(model, settings).eval()
        restore(objective.contrast, state)
        return objective

    return reference, build


def recorded(tensors):
    batch = Batch(
        tensors.get("pixel_values"),
        tensors["input_ids"],
        tensors["attention_mask"],
        torch.arange(len(tensors["input_ids"])),
    )
    return batch, Negatives(tensors["neg_image_idx"], tensors["neg_text_idx"])


def test_losses_gradients_twin_and_queue(prepared, worst_difference):
    reference, build = prepared
    objective = build()
    batch, negatives = recorded(reference.under("in/"))
    objective.begin_step()
    losses = objective(batch, Position(0, 1), negatives)
    losses.total.backward()

    for ours, theirs in (("itc", "ita"), ("itm", "itm"), ("lm", "lm")):  # measured: 2.4e-7
        expected = reference[f"out/loss_{theirs}"]
        torch.testing.assert_close(losses.metrics[ours], expected, atol=TOLERANCE, rtol=0)
    model = objective.model
    gradients = [(name, p.grad) for name, p in model.named_parameters()]
    # measured: 3.8e-6 (temperature, whose gradient is 26), 4e-7 elsewhere
    assert worst_difference(gradients, reference.under("grad/")) < TOLERANCE

    queue, after = objective.contrast.queue, reference.under("after/")
    assert queue.position.item() == after["queue_ptr"].item()
    torch.testing.assert_close(queue.images.T, after["image_queue"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(queue.texts.T, after["text_queue"], atol=TOLERANCE, rtol=0)
    twin = objective.contrast.twin.named_parameters()
    moved = [(name, p) for name, p in twin if official_names(name, twin=True)[0] in after]
    assert len(moved) == sum("_m." in name for name in after)
    assert worst_difference(moved, after, twin=True) < TOLERANCE  # measured: 6e-8


def test_features_similarities_and_negative_weights(prepared):
    reference, build = prepared
    objective = build()
    batch, _ = recorded(reference.under("in/"))
    pairs = len(batch)
    objective.begin_step()
    tokens = objective.model.encode_image(batch.images)
    first = objective.contrast.queue.position.item()
    contrasted = objective.contrast(objective.model, batch, tokens, Position(0, 1))
    places = torch.arange(first, first + pairs) % objective.contrast.queue.size
    for ours, name in (  # measured: 1.1e-6
        (tokens, "image_embeds"),
        (contrasted.image_embed, "image_feat"),
        (contrasted.text_embed, "text_feat"),
        (objective.contrast.queue.images[places], "image_feat_m"),
        (objective.contrast.queue.texts[places], "text_feat_m"),
    ):
        torch.testing.assert_close(ours, reference[f"out/{name}"], atol=TOLERANCE, rtol=0)
    same = torch.eye(pairs, dtype=torch.bool)
    for logits, name in ((contrasted.image_logits, "i2t"), (contrasted.text_logits, "t2i")):
        expected = reference[f"out/sim_{name}"]  # measured: 5.7e-6, values up to 9
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        weights = negative_weights(logits[:, :pairs], same, NEGATIVE_FLOOR, uniform=False)
        expected = reference[f"out/itm_weights_{name}"]
        torch.testing.assert_close(weights, expected, atol=TOLERANCE, rtol=0)


def test_soft_targets(prepared):
    reference, _ = prepared
    state, alpha = reference.under("sd/"), reference.meta["alpha"]
    image, text = (reference[f"out/{kind}_feat_m"] for kind in ("image", "text"))
    texts, images = (
        torch.cat([own, state[f"{kind}_queue"].T])
        for own, kind in ((text, "text"), (image, "image"))
    )
    for own, others, name in ((image, texts, "i2t"), (text, images, "t2i")):
        logits = own @ others.T / state["temp"]
        targets = soft_targets(logits, torch.eye(*logits.shape), alpha)
        expected = reference[f"out/sim_{name}_targets"]  # measured: 6e-8
        torch.testing.assert_close(targets, expected, atol=TOLERANCE, rtol=0)


def test_logits_of_matching_and_language(prepared):
    reference, build = prepared
    model = build().model
    batch, negatives = recorded(reference.under("in/"))
    memory = model.project_images(model.encode_image(batch.images))
    own = torch.arange(len(batch))
    texts = torch.cat([own, own, negatives.texts])
    images = torch.cat([own, negatives.images, own])
    logits = model.match(batch.token_ids[texts], batch.attention_mask[texts], memory, images)
    torch.testing.assert_close(logits, reference["out/itm_logits"], atol=TOLERANCE, rtol=0)
    logits = model.predict(model.decode(batch.token_ids, memory))
    counted = batch.attention_mask.bool()
    expected = reference["out/lm_logits"]  # measured: 3.6e-6
    torch.testing.assert_close(logits[counted], expected[counted], atol=TOLERANCE, rtol=0)


def test_three_steps_with_adamw(prepared, golden, worst_difference):
    _, build = prepared
    steps = golden("pretrain_3steps")
    objective = build()
    settings = objective.contrast.settings
    parameters = [p for p in objective.parameters() if p.requires_grad]
    decay = re.search(r"weight_decay ([\d.]+\d)", steps.meta["optimizer"])[1]
    optimizer = torch.optim.AdamW(parameters, weight_decay=float(decay))
    for number, (lr, alpha) in enumerate(zip(steps.meta["lr"], steps.meta["alpha"], strict=True)):
        optimizer.param_groups[0]["lr"] = lr
        objective.contrast.settings = settings.model_copy(update={"alpha": alpha})
        step = steps.under(f"step{number}/")
        batch, negatives = recorded(step)
        objective.begin_step()
        losses = objective(batch, Position(0, 1), negatives)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        ours = torch.stack([losses.metrics[name] for name in ("itc", "itm", "lm")])
        expected = step["losses_ita_itm_lm"]  # measured: 9.6e-7
        torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)

    after = steps.under("after/")
    erase_key_biases(objective.model, objective.contrast.twin, after)
    # measured: 8.6e-8 in the model, 7.6e-7 in the twin
    assert worst_difference(objective.model.named_parameters(), after) < TOLERANCE
    twin = objective.contrast.twin.named_parameters()
    assert worst_difference(twin, after, twin=True) < TOLERANCE
    queue = objective.contrast.queue
    assert queue.position.item() == after["queue_ptr"].item()
    torch.testing.assert_close(queue.images.T, after["image_queue"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(queue.texts.T, after["text_queue"], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def erase_key_biases(model, twin, after):
    """Set them to 0 on both sides.

    Softmax does not see a bias of the keys: its gradient is rounding noise, whose sign is all that
    Adam keeps.
    """
    for module in (model, twin):
        for name, parameter in module.named_parameters():
            if name.endswith("qkv.bias"):
                parameter.chunk(3)[1].zero_()
            if name.endswith("key_value.bias"):
                parameter.chunk(2)[0].zero_()
    for name, tensor in after.items():
        if name.endswith("attn.qkv.bias"):
            tensor.chunk(3)[1].zero_()
        if name.endswith("self.key.bias"):
            tensor.zero_()


def test_what_encoder_and_decoder_share(shared, tiny_model, golden):
    model = tiny_model("pretrain", golden("pretrain_1rank").under("sd/"))
    groups = json.loads((shared / "golden" / "pretrain_shared_parameters.json").read_text())
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    tensors: dict[object, set[tuple[int, int]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for part, official in enumerate(official_names(name)):
            place = tensors.setdefault(group_of.get(official, official), set())
            place.add((id(parameter), part))
    # What is one tensor there is one here, and what is two there is two here.
    assert all(len(places) == 1 for places in tensors.values())
    assert len(set().union(*tensors.values())) == len(tensors)
    assert sum(isinstance(key, int) for key in tensors) == len(groups)
