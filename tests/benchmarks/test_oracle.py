"""The plain way as the oracle of the fast one, over shapes that no benchmark has."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import inputs, plain
from benchmarks.inputs import find_size
from benchmarks.paths import relative
from blip import config
from blip.batch import Batch
from blip.models.blip import Blip, Parts
from blip.models.generation import beam_search, sample
from blip.models.matching import Texts, match_texts
from blip.objectives import Position
from blip.objectives.itm import Negatives
from blip.objectives.pretrain import PretrainObjective

CPU = torch.device("cpu")
seeds = st.integers(0, 2**31)


@functools.cache
def tiny(parts: Parts) -> Blip:
    return inputs.build_model(find_size("tiny"), parts, 224, CPU)


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Tensor, Tensor, config.Decoding, int | None]:
    """Image tokens, a prompt, a decoding of one length, and for how many readers to project."""
    model = tiny("captioning")
    torch.manual_seed(draw(seeds))
    with torch.inference_mode():
        tokens = model.encode_image(inputs.draw_images(model, draw(st.integers(1, 4))))
    prompt = torch.randint(model.special.sep + 1, model.special.dec, (1, draw(st.integers(1, 4))))
    prompt[0, 0] = model.special.dec
    length = prompt.shape[1] + draw(st.integers(1, 8))
    found = config.Decoding.model_validate(inputs.preset("evaluate")["decoding"])
    changes = {
        "min_length": length,
        "max_length": length,
        "num_beams": draw(st.integers(1, 5)),
        "top_k": draw(st.sampled_from([0, 5, 50])),
        "top_p": draw(st.sampled_from([0.5, 0.9, 1.0])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.1, 2.0])),
    }
    return tokens, prompt, found.model_copy(update=changes), draw(st.sampled_from([None, 1]))


@settings(deadline=None, max_examples=30)
@given(tasks())
def test_beam_search_is_that_of_the_plain_way(task: tuple) -> None:
    tokens, prompt, decoding, readers = task
    model = tiny("captioning")
    with torch.inference_mode():
        ours = beam_search(model, model.project_images(tokens, readers), prompt, decoding)
        expected = plain.beam_search(model, tokens, prompt, decoding)
    assert [ids for ids, _ in ours] == expected.tolist()


@settings(deadline=None, max_examples=30)
@given(tasks())
def test_samples_are_those_of_the_plain_way(task: tuple) -> None:
    tokens, prompt, decoding, readers = task
    model = tiny("captioning")
    draws = torch.rand(len(tokens), decoding.max_length - prompt.shape[1])
    with torch.inference_mode():
        memory = model.project_images(tokens, readers)
        ours = sample(model, memory, prompt, decoding, draws)
        expected = plain.sample(model, tokens, prompt, decoding, draws)
    assert ours == expected.tolist()


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(2, 20), min_size=1, max_size=12),
    num_images=st.integers(1, 3),
    at_once=st.integers(1, 12),
    seed=seeds,
)
def test_matches_are_those_of_the_plain_way(
    lengths: list[int], num_images: int, at_once: int, seed: int
) -> None:
    model = tiny("matching")
    torch.manual_seed(seed)
    ids, mask = inputs.draw_texts(model, len(lengths), dict.fromkeys(lengths, 1), 24)
    owner = torch.randint(num_images, (len(ids),))
    with torch.inference_mode():
        tokens = model.encode_image(inputs.draw_images(model, num_images))
        memory = model.project_images(tokens)
        rows = torch.arange(len(ids))
        ours = match_texts(model, Texts(ids, mask), rows, memory, owner, at_once)
        expected = plain.match(model, ids, mask, tokens[owner])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)  # measured: 1.1e-6


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(count=st.integers(2, 6), longest=st.integers(3, 20), queue=st.integers(1, 40), seed=seeds)
def test_a_step_of_pretraining_is_that_of_the_plain_way(
    count: int, longest: int, queue: int, seed: int
) -> None:
    model = tiny("pretrain")
    torch.manual_seed(seed)
    found = config.Pretrain.model_validate(inputs.preset("pretrain")).contrast
    objective = PretrainObjective(model, found.model_copy(update={"queue_size": queue})).eval()
    ids, mask = inputs.draw_texts(model, count, dict.fromkeys(range(3, longest + 1), 1), 24)
    images, numbers = inputs.draw_images(model, count), torch.arange(count)
    negatives = Negatives(numbers.roll(1), numbers.roll(-1))
    begun = {name: tensor.clone() for name, tensor in objective.contrast.state_dict().items()}
    position, outcomes = Position(5, 10), []
    for plainly in (False, True):
        objective.contrast.load_state_dict(begun)
        objective.zero_grad()
        if plainly:
            batch = Batch(images, ids, mask, numbers)
            losses = plain.pretraining_losses(objective, batch, position, negatives)
        else:
            objective.begin_step()
            batch = Batch(images, *inputs.cut(ids, mask), numbers)
            each = objective(batch, position, negatives)
            losses = each.total[None]
        losses.sum().backward()
        gradients = [p.grad.clone() for p in objective.parameters() if p.grad is not None]
        outcomes.append(
            [losses.detach().sum(), *gradients, objective.contrast.queue.images.clone()]
        )
    ours, expected = outcomes
    assert len(ours) == len(expected) > 50
    worst = max(relative(mine, its) for mine, its in zip(ours, expected, strict=True))
    assert worst <= 1e-5  # measured: 4.5e-6
