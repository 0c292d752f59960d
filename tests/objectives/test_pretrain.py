import copy

import pytest
import torch
from torch.nn import functional

from blip.batch import Batch
from blip.objectives import Position
from blip.objectives.contrast import ramped_alpha
from blip.objectives.pretrain import PretrainObjective

METRICS = {
    "itc",
    "itm",
    "lm",
    "itm_accuracy",
    "similarity_positive",
    "similarity_negative",
    "alpha",
    "temperature",
}


def test_losses_of_a_step(build, contrast, batch):
    objective = PretrainObjective(build("pretrain"), contrast())
    losses = objective(batch(6), Position(3, 10))
    assert set(losses.metrics) == METRICS
    assert not any(value.requires_grad for value in losses.metrics.values())
    parts = sum(losses.metrics[name] for name in ("itc", "itm", "lm"))
    torch.testing.assert_close(losses.total.detach(), parts)
    losses.total.backward()
    without = [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad is None for p in objective.contrast.parameters())


def test_padding_does_not_matter(build, contrast, batch):
    short = batch(5)
    long = Batch(
        short.images,
        functional.pad(short.token_ids, (0, 7)),
        functional.pad(short.attention_mask, (0, 7)),
        short.image_ids,
    )
    totals = []
    for each in (short, long):
        objective = PretrainObjective(build("pretrain"), contrast())
        torch.manual_seed(5)
        totals.append(objective(each, Position(300, 10)).total.item())
    assert totals[0] == pytest.approx(totals[1], abs=1e-5)  # measured: 4.8e-7


def test_order_of_a_step(build, contrast, batch):
    """Clamp, then move the twin, then use it, then enqueue what it gave."""
    model = build("pretrain")
    objective = PretrainObjective(model, contrast(momentum=0.5))
    with torch.no_grad():
        model.temperature.fill_(7.0)
        model.image_projection.weight.mul_(3)
    before = objective.contrast.twin.image_projection.weight.clone()
    pairs = batch(4)
    objective.begin_step()
    losses = objective(pairs, Position(0, 10))
    assert losses.metrics["temperature"].item() == 0.5
    twin, queue = objective.contrast.twin, objective.contrast.queue
    moved = (before + model.image_projection.weight) / 2
    torch.testing.assert_close(twin.image_projection.weight, moved)
    assert torch.equal(queue.images[:4], twin.embed_image(pairs.images))
    assert queue.image_ids.tolist()[:5] == [0, 1, 2, 3, -100]


def test_state_dict_resumes_to_the_bit(build, contrast, batch):
    straight = PretrainObjective(build("pretrain"), contrast())
    straight(batch(5), Position(0, 10))
    torch.manual_seed(9)  # another queue, other weights
    resumed = PretrainObjective(build("pretrain"), contrast())
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    outcomes = []
    for objective in (straight, resumed):
        torch.manual_seed(3)
        objective.begin_step()
        losses = objective(batch(5, seed=1), Position(1, 10))
        losses.total.backward()
        gradients = [p.grad for p in objective.parameters() if p.grad is not None]
        outcomes.append([losses.total.detach(), *gradients, *objective.contrast.queue.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.parametrize("size", [1, 2, 30])
def test_any_batch_fits_any_queue(build, contrast, batch, size):
    objective = PretrainObjective(build("pretrain"), contrast(queue_size=7))
    for step in range(2):
        losses = objective(batch(size, seed=step), Position(step, 10))
        assert torch.isfinite(losses.total)
    assert objective.contrast.queue.position.item() == 2 * size % 7


def test_a_batch_of_one_image_has_no_negatives(build, contrast, batch):
    objective = PretrainObjective(build("pretrain"), contrast())
    losses = objective(batch(4, image_ids=[5, 5, 5, 5]), Position(0, 10))
    assert torch.isfinite(losses.total)


def test_it_learns_two_pairs(build, contrast, batch):
    objective = PretrainObjective(build("pretrain"), contrast(uniform_negatives=100))
    parameters = [p for p in objective.parameters() if p.requires_grad]
    pairs = batch(2)
    first = last = None
    for step in range(80):
        objective.begin_step()
        losses = objective(pairs, Position(step, 10))
        last = {name: losses.metrics[name].item() for name in ("itc", "itm", "lm")}
        first = first or last
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(losses.total, parameters), strict=True
        ):
            parameter.data -= 1e-3 * gradient.sign()
    assert last["lm"] < 0.5 * first["lm"]
    assert last["itm"] < 0.5 * first["itm"]


def test_alpha_rises_over_its_epochs(contrast):
    settings = contrast(alpha=0.4, alpha_ramp_epochs=2.0)
    ramp = [ramped_alpha(settings, Position(step, 5)) for step in (0, 5, 10, 50)]
    assert ramp == pytest.approx([0.0, 0.2, 0.4, 0.4])
    assert ramped_alpha(contrast(alpha=0.4, alpha_ramp_epochs=0), Position(0, 5)) == 0.4


def test_it_needs_a_model_with_both_stacks(build, contrast):
    with pytest.raises(ValueError, match="'retrieval'"):
        PretrainObjective(build("retrieval"), contrast())


def test_sixteen_bits_give_nearly_the_same_losses(build, contrast, batch):
    totals = []
    for enabled in (False, True):
        objective = PretrainObjective(build("pretrain"), contrast())
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = objective(batch(6), Position(0, 10))
        losses.total.backward()
        totals.append(losses.total.item())
        assert objective.contrast.queue.images.dtype == torch.float32
    assert totals[0] == pytest.approx(totals[1], rel=0.01)  # measured: below 0.001
