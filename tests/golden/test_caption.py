"""Captioning against the reference's: loss, logits, gradients, and every way to write a caption."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from blip import config
from blip.batch import Batch
from blip.models.generation import beam_search, filtered, generate, processed
from blip.objectives import Position
from blip.objectives.finetune import CaptioningObjective

TOLERANCE = 1e-5
# This model amplifies rounding: the reference's own logits, up to 8.7, are 4.1e-5 from those in
# float64.
END_TO_END = 5e-5
PROMPT = 4


@pytest.fixture
def prepared(golden, tiny_model):
    reference = golden("caption")
    return reference, tiny_model("captioning", reference.under("sd/"))


def decoding(meta, **changes):
    values = {
        "method": "beam" if meta["num_beams"] > 1 else "greedy",
        "num_beams": meta["num_beams"],
        "top_p": 0.9,
        "top_k": 50,
        "repetition_penalty": meta.get("repetition_penalty", 1.0),
        "min_length": meta["min_length"],
        "max_length": meta["max_length"],
        "batch_size": 4,
    }
    return config.Decoding(**(values | changes))


def test_loss_logits_and_gradients(prepared, worst_difference):
    reference, model = prepared
    inputs = reference.under("in/")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    batch = Batch(inputs["pixel_values"], ids, mask, torch.arange(4))
    objective = CaptioningObjective(model, reference.meta["label_smoothing"], PROMPT).eval()
    losses = objective(batch, Position(0, 1))
    losses.total.backward()
    expected = reference["out/lm_loss_mean"]  # measured: 0
    torch.testing.assert_close(losses.total.detach(), expected, atol=TOLERANCE, rtol=0)
    gradients = [(name, p.grad) for name, p in model.named_parameters()]
    assert worst_difference(gradients, reference.under("grad/")) < TOLERANCE  # measured: 5.7e-6


def test_logits(prepared):
    reference, model = prepared
    ids, counted = reference["in/input_ids"], reference["in/attention_mask"].bool()
    expected = reference["out/image_embeds"]
    image_tokens = model.encode_image(reference["in/pixel_values"])  # measured: 1.4e-6
    torch.testing.assert_close(image_tokens, expected, atol=TOLERANCE, rtol=0)
    logits = model.predict(model.decode(ids, model.project_images(image_tokens)))
    expected = reference["out/logits"]  # measured: 2.3e-5
    torch.testing.assert_close(logits[counted], expected[counted], atol=END_TO_END, rtol=0)
    with sdpa_kernel(SDPBackend.MATH):  # measured: 0.0, the order of sums being the reference's
        logits = model.predict(
            model.decode(ids, model.project_images(reference["out/image_embeds"]))
        )
    torch.testing.assert_close(logits[counted], expected[counted], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["greedy", "beam3", "beam3_rp1.1", "beam5_max30_min10"])
def test_captions_are_the_references(prepared, name):
    reference, model = prepared
    settings = decoding(reference.meta[f"gen/{name}"])
    image_tokens = model.encode_image(reference["in/pixel_values"])
    prompt = reference["in/input_ids"][0, :PROMPT].tolist()
    captions = generate(model, image_tokens, prompt, settings)
    assert captions == [
        written(row, settings.max_length) for row in reference[f"gen/{name}/sequences"].tolist()
    ]


def written(row, max_length):
    """Take the prompt, the end and the padding off, which is a legal token too."""
    if len(row) == max_length and 3 not in row:
        end = len(row)
        while row[end - 1] == 0 and 3 in row:
            end -= 1
        return row[PROMPT:end]
    return row[PROMPT : row.index(3)] if 3 in row else row[PROMPT:]


@pytest.mark.parametrize("name", ["beam3", "beam3_rp1.1", "beam5_max30_min10"])
def test_beam_scores(prepared, name):
    reference, model = prepared
    image_tokens = model.encode_image(reference["in/pixel_values"])
    prompt = reference["in/input_ids"][:1, :PROMPT]
    found = beam_search(model, image_tokens, prompt, decoding(reference.meta[f"gen/{name}"]))
    scores = torch.tensor([score for _, score in found])
    expected = reference[f"gen/{name}/sequences_scores"]  # measured: 2.4e-7
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)


def test_distribution_of_nucleus_sampling(prepared):
    reference, model = prepared
    prefix, logits = reference["nucleus/prefix_ids"], reference["nucleus/raw_logits"]
    image_kv = model.project_images(model.encode_image(reference["in/pixel_values"]))
    ours = model.predict(model.decode(prefix, image_kv)[:, -1])
    torch.testing.assert_close(ours, logits, atol=END_TO_END, rtol=0)  # measured: 1.5e-5
    settings = decoding({"num_beams": 1, "min_length": 5, "max_length": 20}, repetition_penalty=1.1)
    scores = processed(logits, prefix, settings, sep=3)
    expected = reference["nucleus/after_rep_penalty_minlen"]
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)
    for name, top_k in (("topk50_topp0.9", 50), ("topp0.9_only", 0)):
        probabilities, ids = filtered(scores, settings.model_copy(update={"top_k": top_k}))
        spread = torch.zeros_like(scores).scatter(1, ids, probabilities)
        expected = reference[f"nucleus/probs_{name}"]  # measured: 6e-8
        torch.testing.assert_close(spread, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_recorded_samples_are_possible(prepared, seed):
    """Each token that the reference drew has a probability with us, at its place."""
    reference, model = prepared
    settings = decoding({"num_beams": 1, "min_length": 5, "max_length": 20}, repetition_penalty=1.1)
    image_kv = model.project_images(model.encode_image(reference["in/pixel_values"]))
    sequences = reference[f"gen/nucleus_seed{seed}/sequences"]
    logits = model.predict(model.decode(sequences, image_kv))
    for end in range(PROMPT, sequences.shape[1]):
        open_ = ~(sequences[:, PROMPT:end] == 3).any(dim=1)
        scores = processed(logits[:, end - 1], sequences[:, :end], settings, sep=3)
        probabilities, ids = filtered(scores, settings)
        drawn = ids == sequences[:, end : end + 1]
        assert ((probabilities * drawn).sum(dim=1)[open_] > 0).all()
