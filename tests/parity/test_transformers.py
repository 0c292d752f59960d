"""Ours against transformers' BLIP: the same weights, through our conversion, give the same results.

The tolerances are the reference outputs' 1e-5; the worst difference that was measured stands beside
each, for the small size and ViT-B.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip import config
from blip.models.blip import Parts
from blip.models.generation import generate
from blip.objectives.lm import lm_loss
from tests.parity.conftest import Pair

Pairs = Callable[[Parts], Pair]
TOLERANCE = 1e-5
GREEDY = config.Decoding(
    method="greedy",
    num_beams=1,
    top_p=1.0,
    top_k=0,
    repetition_penalty=1.3,
    length_rule="transformers",
    min_length=7,
    max_length=14,
    batch_size=3,
)
BEAM = GREEDY.model_copy(update={"method": "beam", "num_beams": 3})


def worst(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def settings(decoding: config.Decoding) -> dict[str, Any]:
    """Give transformers' names of the settings of a decoding without sampling."""
    names = {"num_beams", "repetition_penalty", "min_length", "max_length"}
    return decoding.model_dump(include=names)


def until_end(rows: Tensor, num_given: int, sep: int) -> list[list[int]]:
    """Cut what transformers generated: no prompt, no [SEP], no padding."""
    texts = [row[num_given:] for row in rows.tolist()]
    return [text[: text.index(sep)] if sep in text else text for text in texts]


@torch.inference_mode()
def test_captions(pair: Pairs) -> None:
    both = pair("captioning")
    ours, theirs, special = both.ours, both.theirs, both.ours.special
    token_ids = both.starting_with(special.dec)
    counted = both.mask.bool()
    labels = token_ids.masked_fill(~counted, -100)
    labels[:, :3] = -100  # a prompt of three tokens
    expected = theirs(both.images, token_ids, attention_mask=both.mask, labels=labels)

    image_tokens = ours.encode_image(both.images)
    memory = ours.project_images(image_tokens)
    logits = ours.predict(ours.decode(token_ids, memory))
    loss = lm_loss(
        ours.decode(token_ids[:, :-1], memory), token_ids, both.mask, ours.predict, 0.1, 3
    )
    assert worst(image_tokens, expected.image_embeds) <= TOLERANCE  # 1.8e-6, 3.0e-6
    assert worst(logits[counted], expected.logits[counted]) <= TOLERANCE  # 4.0e-6, 4.5e-6
    assert worst(loss, expected.loss) <= TOLERANCE  # 0, 1.9e-6

    prompt = token_ids[0, :4].tolist()
    given = torch.tensor([[*prompt, special.sep]]).repeat(3, 1)  # its last token is cut off there
    for decoding in (GREEDY, BEAM):
        rows = theirs.generate(both.images, given, **settings(decoding))
        texts = generate(ours, memory, prompt, decoding)
        assert texts == until_end(rows, len(prompt), special.sep)
        assert len(set(map(tuple, texts))) == 3  # each image has its own


@torch.inference_mode()
def test_matches_and_similarities(pair: Pairs) -> None:
    both = pair("matching")
    ours, theirs = both.ours, both.theirs
    grounded = both.starting_with(ours.special.enc)  # transformers leaves [CLS] there
    logits = theirs(grounded, both.images, attention_mask=both.mask).itm_score
    cosines = theirs(
        both.token_ids, both.images, attention_mask=both.mask, use_itm_head=False
    ).itm_score

    image_tokens = ours.encode_image(both.images)
    texts = ours.embed_text(ours.encode_text(both.token_ids, both.mask, pooled=True))
    memory = ours.project_images(image_tokens)
    found = ours.match(both.token_ids, both.mask, memory)
    assert worst(found, logits) <= TOLERANCE  # 1.4e-6, 1.1e-6
    assert worst(ours.embed_image(image_tokens) @ texts.T, cosines) <= TOLERANCE  # 3.0e-7, 1.2e-7


def answer_logits(both: Pair, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Give the logits (3, L, V) of answers to three questions, ours and theirs."""
    ours, theirs = both.ours, both.theirs
    memory = ours.project_images(ours.encode_image(both.images))
    states = ours.encode_pairs(both.token_ids, both.mask, memory)
    questions = ours.project_questions(states, both.mask)
    seen = theirs.vision_model(both.images).last_hidden_state
    asked = theirs.text_encoder(
        both.starting_with(ours.special.enc),
        attention_mask=both.mask,
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:2]),
    ).last_hidden_state
    expected = theirs.text_decoder(
        answers, encoder_hidden_states=asked, encoder_attention_mask=both.mask
    ).logits
    return ours.predict(ours.decode(answers, questions)), expected


def restore_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mend the cross-attention of transformers 5.23, which drops its mask (BLIP.md 6.3)."""
    from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

    forward = BlipTextSelfAttention.forward

    def mended(
        self: Any, hidden: Tensor, mask: Any = None, memory: Any = None, *rest: Any, **named: Any
    ) -> Any:
        attention_mask = named.pop("attention_mask", mask)
        encoder_hidden_states = named.pop("encoder_hidden_states", memory)
        named["encoder_attention_mask"] = attention_mask
        return forward(self, hidden, attention_mask, encoder_hidden_states, *rest, **named)

    monkeypatch.setattr(BlipTextSelfAttention, "forward", mended)


@torch.inference_mode()
def test_answers(pair: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    both = pair("vqa")
    ours, theirs, special = both.ours, both.theirs, both.ours.special
    answers = torch.tensor([[special.dec, 11, 12, special.sep]]).expand(3, -1)
    found, expected = answer_logits(both, answers)
    assert worst(found[:1], expected[:1]) <= TOLERANCE  # no padding: 2.4e-6, 4.5e-6
    assert worst(found[1:], expected[1:]) > 1e-2  # theirs reads padding: 0.33, 0.22
    with monkeypatch.context() as patch:
        restore_mask(patch)
        assert worst(*answer_logits(both, answers)) <= TOLERANCE  # 3.6e-6, 4.5e-6

    # One question, so that there is no padding: the whole way, as transformers goes it.
    token_ids, mask = both.token_ids[:1], both.mask[:1]
    grounded = both.starting_with(special.enc)[:1]
    loss = theirs(grounded, both.images[:1], attention_mask=mask, labels=answers[:1]).loss
    memory = ours.project_images(ours.encode_image(both.images[:1]))
    questions = ours.project_questions(ours.encode_pairs(token_ids, mask, memory), mask)
    hidden = ours.decode(answers[:1, :-1], questions)
    counted = torch.ones_like(answers[:1])
    found = lm_loss(hidden, answers[:1], counted, ours.predict, 0.1)
    assert worst(found, loss) <= TOLERANCE  # 4.8e-7, 9.6e-7
    for decoding in (GREEDY, BEAM):
        shorter = decoding.model_copy(update={"min_length": 1, "max_length": 10})
        rows = theirs.generate(grounded, both.images[:1], mask, **settings(shorter))
        texts = generate(ours, questions, [special.dec], shorter)
        assert texts == until_end(rows, 1, special.sep)
