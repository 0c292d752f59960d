"""Captioning against the reference's: loss, logits, gradients, and every way to write a caption."""

import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from blip import config
from blip.batch import Batch
from blip.data.text import Tokenizer
from blip.models.generation import beam_search, filtered, generate, processed
from blip.objectives import Position
from blip.objectives.finetune import CaptioningObjective
from blip.objectives.lm import text_losses

TOLERANCE = 1e-5
# This model amplifies rounding. Over 25 shuffles of its weights, plain float32 was 1.0e-4 from
# float64 in the logits (up to 9) and 2.4e-5 in the gradients, and ours 5.6e-5 and 1.6e-5 from
# plain float32.
END_TO_END = 1e-4
GRADIENTS = 3e-5
# What the reference's code samples with, whatever the call says (BLIP.md 3).
REPETITION_PENALTY = 1.1


@pytest.fixture
def prepared(golden, tiny_model):
    reference = golden("caption")
    return reference, tiny_model("captioning", reference.under("sd/"))


def decoding(recorded, **changes):
    values = {
        "method": "beam" if recorded["num_beams"] > 1 else "greedy",
        "num_beams": recorded["num_beams"],
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": recorded.get("repetition_penalty", 1.0),
        "length_rule": "reference",
        "min_length": recorded["min_length"],
        "max_length": recorded["max_length"],
        "batch_size": 4,
    }
    return config.Decoding(**(values | changes))


def sampling(reference):
    """Settings of the recorded draws: what they are filtered with stands in a tensor's name."""
    (name,) = (name for name in reference.tensors if "probs_topk" in name)
    top_k, top_p = re.search(r"topk(\d+)_topp([\d.]+)", name).groups()
    filters = {"top_k": int(top_k), "top_p": float(top_p)}
    lengths = reference.meta["gen/greedy"]
    return name, decoding(lengths, **filters, repetition_penalty=REPETITION_PENALTY)


def searches(reference):
    """Names and settings of the recorded searches, greedy among them."""
    return {
        name.removeprefix("gen/"): recorded
        for name, recorded in reference.meta.items()
        if name.startswith("gen/") and isinstance(recorded, dict)
    }


def test_loss_logits_and_gradients(prepared, worst_difference):
    reference, model = prepared
    inputs = reference.under("in/")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    batch = Batch(inputs["pixel_values"], ids, mask, torch.arange(len(ids)))
    smoothing, prompt_length = reference.meta["label_smoothing"], reference.meta["prompt_length"]
    objective = CaptioningObjective(model, smoothing, prompt_length).eval()
    losses = objective(batch, Position(0, 1))
    losses.total.backward()
    expected = reference["out/lm_loss_mean"]  # measured: 1.5e-6
    torch.testing.assert_close(losses.total.detach(), expected, atol=TOLERANCE, rtol=0)
    gradients = [(name, p.grad) for name, p in model.named_parameters()]
    assert worst_difference(gradients, reference.under("grad/")) < GRADIENTS  # measured: 5.7e-6


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
        hidden = model.decode(ids, model.project_images(reference["out/image_embeds"]))
    logits = model.predict(hidden)
    torch.testing.assert_close(logits[counted], expected[counted], atol=TOLERANCE, rtol=0)
    smoothing, start = reference.meta["label_smoothing"], reference.meta["prompt_length"]
    sums = text_losses(hidden[:, :-1], ids, counted, model.predict, smoothing, start)
    expected = reference["out/lm_loss_sum_per_sequence"]  # measured: 3.9e-6, of sums up to 47
    torch.testing.assert_close(sums, expected, atol=TOLERANCE, rtol=0)


def test_captions_are_the_references(prepared, shared):
    reference, model = prepared
    tokenizer = Tokenizer(shared / "golden" / "tiny_vocab.txt")
    memory = model.project_images(model.encode_image(reference["in/pixel_values"]))
    prompt = reference["in/input_ids"][0, : reference.meta["prompt_length"]].tolist()
    assert searches(reference)
    for name, recorded in searches(reference).items():
        captions = generate(model, memory, prompt, decoding(recorded))
        rows = reference[f"gen/{name}/sequences"].tolist()
        assert captions == [written(row, len(prompt), model.special.sep) for row in rows], name
        words = [tokenizer.decode([*prompt, *ids]) for ids in captions]
        cut = len(reference.meta["prompt"])  # the reference takes so many characters off
        assert [text[cut:] for text in words] == recorded["captions"], name


def written(row, start, sep):
    """Take off the prompt, the end, and the padding behind it."""
    return row[start : row.index(sep)] if sep in row else row[start:]


def test_beam_scores(prepared):
    reference, model = prepared
    memory = model.project_images(model.encode_image(reference["in/pixel_values"]))
    prompt = reference["in/input_ids"][:1, : reference.meta["prompt_length"]]
    for name, recorded in searches(reference).items():
        if recorded["num_beams"] > 1:
            found = beam_search(model, memory, prompt, decoding(recorded))
            scores = torch.tensor([score for _, score in found])
            expected = reference[f"gen/{name}/sequences_scores"]  # measured: 2.1e-6
            torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)


def test_distribution_of_nucleus_sampling(prepared):
    reference, model = prepared
    prefix, logits = reference["nucleus/prefix_ids"], reference["nucleus/raw_logits"]
    memory = model.project_images(model.encode_image(reference["in/pixel_values"]))
    ours = model.predict(model.decode(prefix, memory)[:, -1])
    torch.testing.assert_close(ours, logits, atol=END_TO_END, rtol=0)  # measured: 2.7e-5
    both, settings = sampling(reference)
    scores = processed(logits, prefix, settings, model.special.sep)
    expected = reference["nucleus/after_rep_penalty_minlen"]
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)
    alone = both.replace(f"topk{settings.top_k}_", "") + "_only"
    for name, top_k in ((both, settings.top_k), (alone, 0)):
        probabilities, ids = filtered(scores, settings.model_copy(update={"top_k": top_k}))
        spread = torch.zeros_like(scores).scatter(1, ids, probabilities)
        expected = reference[name]  # measured: 6e-8
        torch.testing.assert_close(spread, expected, atol=TOLERANCE, rtol=0)


def test_recorded_samples_are_possible(prepared, shared):
    """Each token that the reference drew has a probability with us, at its place."""
    reference, model = prepared
    start, sep = reference.meta["prompt_length"], model.special.sep
    _, settings = sampling(reference)
    memory = model.project_images(model.encode_image(reference["in/pixel_values"]))
    tokenizer = Tokenizer(shared / "golden" / "tiny_vocab.txt")
    drawn = [name for name in reference.meta if name.startswith("gen/nucleus_seed")]
    assert drawn
    for name in drawn:
        sequences = reference[f"{name}/sequences"]
        texts = [tokenizer.decode(row) for row in sequences.tolist()]
        assert [text[len(reference.meta["prompt"]) :] for text in texts] == reference.meta[name]
        logits = model.predict(model.decode(sequences, memory))
        for end in range(start, sequences.shape[1]):
            open_ = ~(sequences[:, start:end] == sep).any(dim=1)
            scores = processed(logits[:, end - 1], sequences[:, :end], settings, sep)
            probabilities, ids = filtered(scores, settings)
            chosen = ids == sequences[:, end : end + 1]
            assert ((probabilities * chosen).sum(dim=1)[open_] > 0).all()
