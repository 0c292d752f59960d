"""Nucleus sampling against the recorded samples: the choices injected, and drawn as there."""

import re

import pytest
import torch

from blip import config
from blip.models.generation import filtered, processed, sample


@pytest.fixture
def prepared(golden, tiny_model):
    reference = golden("caption")
    (kept,) = [k for k in reference.tensors if re.fullmatch(r"nucleus/probs_topk\d+_topp.*", k)]
    top_k, top_p = re.findall(r"[\d.]+", kept)
    (name, *_) = recorded = sorted(k for k in reference.meta if k.startswith("gen/nucleus_seed"))
    any_limits = reference.meta["gen/greedy"]
    settings = config.Decoding(
        method="nucleus",
        num_beams=1,
        top_p=float(top_p),
        top_k=int(top_k),
        repetition_penalty=1.1,  # fixed in the reference's sampling (BLIP.md 3)
        length_rule="reference",
        min_length=any_limits["min_length"],
        max_length=reference[f"{name}/sequences"].shape[1],
        batch_size=1,
    )
    model = tiny_model("captioning", reference.under("sd/"))
    return reference, model, settings, recorded


@torch.inference_mode()
def test_recorded_choices_are_written_again(prepared):
    """Each choice as a draw, the middle of the token's part of the cumulative distribution."""
    reference, model, settings, recorded = prepared
    start, sep = reference.meta["prompt_length"], model.special.sep
    memory = model.project_images(model.encode_image(reference["in/pixel_values"]))
    for name in recorded:
        sequences = reference[f"{name}/sequences"]
        logits = model.predict(model.decode(sequences, memory))
        draws = torch.zeros(len(sequences), sequences.shape[1] - start)
        for step in range(draws.shape[1]):
            end = start + step
            scores = processed(logits[:, end - 1], sequences[:, :end], settings, sep)
            probabilities, ids = filtered(scores, settings)
            chosen = ids == sequences[:, end : end + 1]
            after = (probabilities.cumsum(1) * chosen).sum(1)
            draws[:, step] = after - (probabilities * chosen).sum(1) / 2
        prompt = sequences[:1, :start]
        written = sample(model, memory, prompt, settings, draws)
        assert written == [until(row[start:], sep) for row in sequences.tolist()]


@torch.inference_mode()
def test_the_same_seed_draws_the_same_tokens(prepared):
    """Our distribution and torch's draw, of the whole batch as the reference calls it."""
    reference, model, settings, recorded = prepared
    start, sep = reference.meta["prompt_length"], model.special.sep
    memory = model.project_images(model.encode_image(reference["in/pixel_values"]))
    for name in recorded:
        sequences = reference[f"{name}/sequences"]
        torch.manual_seed(int(name.removeprefix("gen/nucleus_seed")))
        ids, open_ = sequences[:, :start], torch.ones(len(sequences), dtype=torch.bool)
        while ids.shape[1] < settings.max_length and open_.any():
            scores = processed(model.predict(model.decode(ids, memory)[:, -1]), ids, settings, sep)
            probabilities, places = filtered(scores, settings)
            spread = torch.zeros_like(scores).scatter(1, places, probabilities)
            drawn = torch.multinomial(spread, 1)[:, 0] * open_  # padding, 0, after the end
            ids, open_ = torch.cat([ids, drawn[:, None]], dim=1), open_ & (drawn != sep)
        assert ids.tolist() == sequences[:, : ids.shape[1]].tolist()


def until(row, sep):
    return row[: row.index(sep)] if sep in row else row
