"""VQA against the reference's: states, training loss, gradients, ranked and written answers."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from blip import config
from blip.batch import QuestionBatch
from blip.evaluate.vqa import encode_questions, ground_questions, rank_answers
from blip.models.generation import beam_search
from blip.models.matching import Texts
from blip.objectives import Position
from blip.objectives.finetune import VqaObjective
from blip.objectives.lm import text_losses

TOLERANCE = 1e-5
END_TO_END = 1e-4  # this model amplifies rounding, as that of test_caption.py does
NAMES = ["vqa", "vqa_w64"]


@pytest.fixture
def prepared(golden, tiny_model):
    def load(name):
        reference = golden(name)
        return reference, tiny_model("vqa", reference.under("sd/"))

    return load


def questions(reference):
    return Texts(reference["in/question_ids"], reference["in/question_mask"])


def beam(reference, sequences, **changes):
    """Beam search of VQA (BLIP.md 5.3); how long an answer may be, the recorded ones tell."""
    values = {"method": "beam", "num_beams": 3, "top_p": 1.0, "top_k": 0, "batch_size": 1}
    values |= {"repetition_penalty": 1.0, "length_rule": "reference"}
    values |= {"min_length": 1, "max_length": sequences.shape[1]}
    return config.Decoding(**(values | changes))


@pytest.mark.parametrize("name", NAMES)
def test_question_states(prepared, name):
    reference, model = prepared(name)
    tokens = model.encode_image(reference["in/pixel_values"])
    expected = reference["out/image_embeds"]  # measured: 1.2e-6
    torch.testing.assert_close(tokens, expected, atol=TOLERANCE, rtol=0)
    asked = questions(reference)
    states = model.encode_pairs(asked.token_ids, asked.mask, model.project_images(tokens))
    counted = asked.mask.bool()
    expected = reference["out/question_states"]  # measured: 4.4e-6
    torch.testing.assert_close(states[counted], expected[counted], atol=TOLERANCE, rtol=0)


def test_training_loss_and_gradients(prepared, worst_difference):
    reference, model = prepared("vqa")
    inputs = reference.under("in/")
    counts = inputs["n_answers"]
    batch = QuestionBatch(
        inputs["pixel_values"],
        inputs["question_ids"],
        inputs["question_mask"],
        inputs["answer_ids"],
        inputs["answer_mask"],
        inputs["weights"],
        torch.repeat_interleave(torch.arange(len(counts)), counts),
    )
    losses = VqaObjective(model, 0.1)(batch, Position(0, 1))
    losses.total.backward()
    expected = reference["out/train_loss"]  # measured: 9.5e-7 (of 11)
    torch.testing.assert_close(losses.total.detach(), expected, atol=TOLERANCE, rtol=0)
    gradients = [(name, p.grad) for name, p in model.named_parameters()]
    assert worst_difference(gradients, reference.under("grad/")) < TOLERANCE  # measured: 2.1e-6


@torch.inference_mode()
def test_logits_and_mean_loss(prepared):
    reference, model = prepared("vqa_w64")
    ids, mask = reference["in/answer_ids"], reference["in/answer_mask"]
    counted, expected = mask.bool(), reference["out/logits"]
    with sdpa_kernel(SDPBackend.MATH):  # measured: 0.0, the order of sums being the reference's
        memory = encode_questions(model, reference["out/image_embeds"], questions(reference))
        logits = model.predict(model.decode(ids, memory))
    torch.testing.assert_close(logits[counted], expected[counted], atol=TOLERANCE, rtol=0)
    tokens = model.encode_image(reference["in/pixel_values"])
    memory = encode_questions(model, tokens, questions(reference))
    logits = model.predict(model.decode(ids, memory))  # measured: 9.5e-6
    torch.testing.assert_close(logits[counted], expected[counted], atol=END_TO_END, rtol=0)
    hidden = model.decode(ids[:, :-1], memory)
    losses = text_losses(hidden, ids, mask, model.predict, 0.1)
    mean = losses.sum() / mask[:, 1:].sum()  # measured: 4.8e-7
    torch.testing.assert_close(mean, reference["out/lm_loss_mean"], atol=TOLERANCE, rtol=0)


def test_ranking(prepared):
    reference, model = prepared("vqa")
    tokens = model.encode_image(reference["in/pixel_values"])
    memory = encode_questions(model, tokens, questions(reference))
    answers = Texts(reference["in/candidate_ids"], reference["in/candidate_mask"])
    cases = sorted({k.split("/")[0] for k in reference.tensors if k.startswith("rank_k")})
    assert cases
    for case in cases:
        expected = reference.under(f"{case}/")
        ranked = rank_answers(model, memory, answers, expected["topk_ids"].shape[1])
        first = expected["first_token_prob"]  # measured: 1.9e-7
        torch.testing.assert_close(ranked.first_probability, first, atol=TOLERANCE, rtol=0)
        assert ranked.best.tolist() == expected["best_id"].tolist()
        # Candidates that begin alike are equally likely, and stand in any order.
        ours, order = ranked.candidates.sort(dim=1)
        theirs, their_order = expected["topk_ids"].sort(dim=1)
        assert ours.tolist() == theirs.tolist()
        scores = expected["log_prob_sum"].gather(1, their_order)
        ours = ranked.scores.gather(1, order)  # measured: 7.6e-6, of sums up to 40
        torch.testing.assert_close(ours, scores, atol=TOLERANCE, rtol=1e-6)


def test_ranking_of_questions_in_any_order(prepared):
    """Questions name their images, which were projected before; one is asked twice."""
    reference, model = prepared("vqa")
    images = model.project_images(model.encode_image(reference["in/pixel_values"]))
    order = torch.tensor([2, 0, 1, 0])
    asked = Texts(reference["in/question_ids"][order], reference["in/question_mask"][order])
    answers = Texts(reference["in/candidate_ids"], reference["in/candidate_mask"])
    memory = ground_questions(model, images, asked, order)
    expected = reference.under("rank_k5/")
    ranked = rank_answers(model, memory, answers, 5)
    assert ranked.best.tolist() == expected["best_id"][order].tolist()
    scores = expected["log_prob_sum"][order].sort(dim=1).values
    ours = ranked.scores.sort(dim=1).values  # measured: 3.4e-6, of sums up to 40
    torch.testing.assert_close(ours, scores, atol=TOLERANCE, rtol=1e-6)


@torch.inference_mode()
def test_written_answers_of_a_batch_as_the_reference_writes_them(prepared, special):
    """The reference forgets which question tokens are padding; told so, we write the same."""
    reference, model = prepared("vqa")
    tokens = model.encode_image(reference["in/pixel_values"])
    asked = questions(reference)
    states = model.encode_pairs(asked.token_ids, asked.mask, model.project_images(tokens))
    forgetful = model.project_questions(states, torch.ones_like(asked.mask))
    check_beams(reference, "gen/beam3/", model, forgetful, special)


@torch.inference_mode()
def test_written_answers_one_by_one_and_in_a_batch(prepared, special):
    reference, model = prepared("vqa_w64")
    tokens = model.encode_image(reference["in/pixel_values"])
    memory = encode_questions(model, tokens, questions(reference))
    names = sorted(k for k in reference.tensors if k.endswith("/sequences"))
    assert len(names) == len(memory)
    for row, name in enumerate(names):
        prefix = name.removesuffix("sequences")
        check_beams(reference, prefix, model, memory.select(slice(row, row + 1)), special)
    settings = beam(reference, reference[names[0]])
    start = torch.tensor([[special.dec]])
    together = beam_search(model, memory, start, settings)
    alone = [
        beam_search(model, memory.select(slice(row, row + 1)), start, settings)[0]
        for row in range(len(memory))
    ]
    assert [ids for ids, _ in together] == [ids for ids, _ in alone]


def check_beams(reference, prefix, model, memory, special):
    sequences = reference[f"{prefix}sequences"]
    settings = beam(reference, sequences)
    found = beam_search(model, memory, torch.tensor([[special.dec]]), settings)
    for (ids, _), row in zip(found, sequences.tolist(), strict=True):
        assert row[0] == special.dec
        assert ids == (row[1 : row.index(special.sep)] if special.sep in row else row[1:])
    scores = torch.tensor([score for _, score in found])
    expected = reference[f"{prefix}sequences_scores"]  # measured: 1.2e-6
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)
