"""Answers to questions about images: ranked among candidates, or written freely (BLIP.md 5.3)."""

from typing import NamedTuple

import torch
from torch import Tensor

from blip.models.blip import Blip
from blip.models.matching import Texts
from blip.models.med import Memory
from blip.objectives.lm import text_losses

LABEL_SMOOTHING = 0.1  # the reference scores with the loss that it trains with


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


@torch.inference_mode()
def encode_questions(model: Blip, image_tokens: Tensor, questions: Texts) -> Memory:
    """Make the memory that answers are read from: question states, grounded in the image.

    Args:
        model: A model with the parts `vqa`.
        image_tokens: (B, N, D) from `encode_image`, or (B, F * N, D) of videos.
        questions: B cleaned and tokenised questions.
    """
    device = image_tokens.device
    ids, mask = questions.token_ids.to(device), questions.mask.to(device)
    states = model.encode_pairs(
        ids, mask, model.project_images(image_tokens, ids.numel() // len(image_tokens))
    )
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
        ValueError: `k` is more than the number of candidates.
    """
    if not 0 < k <= len(answers):
        raise ValueError(
            f"k = {k} answers to score, of {len(answers)} candidates: lower k, or give more"
        )
    device = questions.device
    ids, mask = answers.token_ids.to(device), answers.mask.to(device)
    start = ids.new_full((len(questions), 1), model.special.dec)
    first = model.predict(model.decode(start, questions)[:, 0]).float().softmax(dim=1)
    first_probability = first[:, ids[:, 1]]
    candidates = first_probability.topk(k, dim=1).indices
    chosen = candidates.flatten()
    longest = int(mask[chosen].sum(dim=1).max())
    token_ids, token_mask = ids[chosen, :longest], mask[chosen, :longest]
    losses = text_losses(
        model.decode(token_ids[:, :-1], questions),
        token_ids,
        token_mask,
        model.predict,
        LABEL_SMOOTHING,
    )
    scores = -losses.view(-1, k)
    best = candidates.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)
    return RankedAnswers(first_probability, candidates, scores, best)
