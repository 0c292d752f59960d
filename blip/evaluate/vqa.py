"""Answers to questions about images: ranked among candidates, or written freely (BLIP.md 5.3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blip.config import Decoding
from blip.data.tasks import MAX_ANSWER_TOKENS
from blip.data.text import Tokenizer, clean_question
from blip.evaluate.network import Network, require_finite
from blip.models.blip import Blip
from blip.models.generation import generate
from blip.models.matching import Texts
from blip.models.med import Memory
from blip.models.prefixes import find_prefixes

TOKENS_AT_ONCE = 4096  # of answers that are decoded together: bounds the memory
STATES_AT_ONCE = 128  # of which the language head writes logits: what a cache holds
LABEL_SMOOTHING = 0.1  # the reference scores with the loss that it trains with

# BLIP.md 1.1 and 5.3.
QUESTION_WORDS, QUESTION_TOKENS = 50, 35
RANKED = 128  # answers that are scored in full, or all where there are fewer

ANSWER = Decoding(  # BLIP.md 5.3
    method="beam",
    num_beams=3,
    top_p=1.0,
    top_k=0,
    repetition_penalty=1.0,
    length_rule="reference",
    min_length=1,
    max_length=10,
    batch_size=1,
)


class RankedAnswers(NamedTuple):
    """The candidates that were scored for B questions.

    Attributes:
        first_probability: (B, C) of the first word piece of every candidate.
        candidates: (B, k) int64, those with the likeliest first piece, falling.
        scores: (B, k) negative loss of each, label smoothing included.
        best: (B,) int64, the candidate with the highest score.
    """

    first_probability: Tensor
    candidates: Tensor
    scores: Tensor
    best: Tensor


class Answerer:
    """Answers questions: writes, or chooses the best of some answers.

    Args:
        network: Of a model with the parts `vqa`.
        candidates: What to choose from; `None` lets the model write.
    """

    def __init__(self, network: Network, candidates: Sequence[str] | None) -> None:
        self._network, self._candidates = network, candidates
        if candidates is not None:
            self._texts = Texts(*network.tokenizer.encode(candidates, MAX_ANSWER_TOKENS))

    def __call__(self, questions: Memory) -> list[str]:
        """Give an answer to each of some questions, from `encode_questions`.

        Raises:
            CheckpointError: A score is not a number.
        """
        model, tokenizer, _ = self._network
        if self._candidates is None:
            written = generate(model, questions, tokenizer.prompt(""), ANSWER)
            return [tokenizer.decode(ids) for ids in written]
        ranked = rank_answers(model, questions, self._texts, min(RANKED, len(self._candidates)))
        return [self._candidates[best] for best in ranked.best.tolist()]


def tokenize_questions(tokenizer: Tokenizer, questions: Sequence[str]) -> Texts:
    """Give questions as a model reads them."""
    cleaned = [clean_question(question, QUESTION_WORDS) for question in questions]
    return Texts(*tokenizer.encode(cleaned, QUESTION_TOKENS))


def encode_questions(model: Blip, image_tokens: Tensor, questions: Texts) -> Memory:
    """Make the memory that answers are read from: question states, grounded in the image.

    Args:
        model: A model with the parts `vqa`.
        image_tokens: (B, N, D) from `encode_image`, or (B, F * N, D) of videos.
        questions: P cleaned and tokenised questions, as many about each image; those of an image
            stand together.
    """
    readers = questions.token_ids.numel() // len(image_tokens)
    return ground_questions(model, model.project_images(image_tokens, readers), questions)


@torch.inference_mode()
def ground_questions(
    model: Blip, images: Memory, questions: Texts, image_index: Tensor | None = None
) -> Memory:
    """Make the memory that answers are read from, of images that were projected before.

    Args:
        model: A model with the parts `vqa`.
        images: `project_images` of B images.
        questions: P cleaned and tokenised questions.
        image_index: (P,) the image of each; `None` where those of an image stand together.
    """
    ids, mask = questions.token_ids.to(images.device), questions.mask.to(images.device)
    if image_index is not None:
        image_index = image_index.to(images.device)
    states = model.encode_pairs(ids, mask, images, image_index)
    return model.project_questions(states, mask)


@torch.inference_mode()
def rank_answers(model: Blip, questions: Memory, answers: Texts, k: int) -> RankedAnswers:
    """Rank candidate answers: those k whose first piece is likeliest are scored in full.

    Args:
        model: A model with the parts `vqa`.
        questions: From `encode_questions`.
        answers: C tokenised candidates.
        k: Candidates to score; 128 of 3,128 in the paper.

    Raises:
        CheckpointError: A score is not a number.
        ValueError: `k` is more than the number of candidates.
    """
    if not 0 < k <= len(answers):
        raise ValueError(
            f"k = {k} answers to score, of {len(answers)} candidates: lower k, or give more"
        )
    device = questions.device
    ids, mask = answers.token_ids.cpu(), answers.mask.cpu()
    start = torch.full((len(questions), 1), model.special.dec, device=device)
    first = model.predict(model.decode(start, questions)[:, 0]).float().softmax(dim=1)
    first_probability = first[:, ids[:, 1].to(device)]
    # Candidates that begin alike are equally likely, and so stand together.
    candidates = first_probability.topk(k, dim=1).indices
    chosen = candidates.flatten().cpu()
    asked = torch.arange(len(questions)).repeat_interleave(k)
    part = mask[chosen].sum(dim=1).cumsum(dim=0) // TOKENS_AT_ONCE
    sizes = [size for size in part.bincount().tolist() if size]
    losses = [
        _answer_losses(model, questions, ids[rows], mask[rows], question)
        for rows, question in zip(
            torch.split(chosen, sizes), torch.split(asked, sizes), strict=True
        )
    ]
    scores = -torch.cat(losses).view(-1, k)
    require_finite(scores, "answers")
    best = candidates.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)
    return RankedAnswers(first_probability, candidates, scores, best)


def _answer_losses(
    model: Blip, questions: Memory, ids: Tensor, mask: Tensor, question: Tensor
) -> Tensor:
    """Sum the losses of the tokens of R answers, whose (R,) questions rise: (R,)."""
    first, last = int(question[0]), int(question[-1])
    memory = questions.select(slice(first, last + 1))
    prefixes = find_prefixes(ids, mask, question - first, len(memory), model.special.dec)
    device = memory.device
    hidden = model.decode_prefixes(prefixes.to(device), memory)
    counted = mask[:, 1:].bool()
    losses = _token_losses(model, hidden, prefixes.before[counted], ids[:, 1:][counted])
    answer = counted.nonzero()[:, 0].to(device)
    return losses.new_zeros(len(ids)).index_add(0, answer, losses)


def _token_losses(model: Blip, hidden: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Give the smoothed cross-entropy of P tokens, each by one of (M, W) states: (P,).

    The language head reads every state once, some at a time: rows of the vocabulary are long.
    """
    losses = torch.empty(len(rows), device=hidden.device)
    for part, states in enumerate(torch.split(hidden, STATES_AT_ONCE)):
        log_probability = model.predict(states).float().log_softmax(dim=1)
        here = (rows // STATES_AT_ONCE == part).nonzero()[:, 0]
        row = (rows[here] % STATES_AT_ONCE).to(hidden.device)
        target, here = targets[here].to(hidden.device), here.to(hidden.device)
        hit, uniform = log_probability[row, target], log_probability.mean(dim=1)[row]
        losses[here] = -(1 - LABEL_SMOOTHING) * hit - LABEL_SMOOTHING * uniform
    return losses
