"""The plain way: what the reference does, on our weights. It is the oracle of the benchmarks.

Texts are padded to the fixed length of their use, image tokens are repeated for every text, negative
and beam, cross-attention projects them anew every time, attention is written out, every position
of every layer is computed, and the language head reads all of them. Only generation keeps the keys
and values of the text, as in the reference. Facts: BLIP.md sections 1, 2.1, 5.1-5.3.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip import config
from blip.batch import Batch
from blip.models.attention import CrossAttention, SelfAttention, join_heads, split_heads
from blip.models.blip import Blip
from blip.models.generation import filtered, processed
from blip.models.med import TextLayer, TextTransformer
from blip.models.vit import VisionBlock, VisionTransformer
from blip.objectives import Position
from blip.objectives.contrast import MAX_TEMPERATURE, MIN_TEMPERATURE, ramped_alpha
from blip.objectives.itm import Negatives
from blip.objectives.pretrain import LABEL_SMOOTHING, NEGATIVE_FLOOR, PretrainObjective

Past = list[tuple[Tensor, Tensor]]
"""Keys and values of the text, of every layer; empty before the first step."""

MASKED = -10000.0
IGNORED = -100
NOT_RANKED = -100.0


def attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None, dropout: float
) -> Tensor:
    """Attend with (P, L, W) queries over (P, N, W) keys and values; `dropout` is its probability."""
    query, key, value = (split_heads(tokens, num_heads) for tokens in (query, key, value))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, MASKED)
    return join_heads(functional.dropout(scores.softmax(dim=-1), dropout) @ value)


def dense(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer by PyTorch's own choice of library."""
    return functional.linear(x, layer.weight, layer.bias)


def predict(model: Blip, hidden: Tensor) -> Tensor:
    """Give next-token logits (..., V) of decoder states (..., W)."""
    head, words = model.language_head, model.text_decoder.embeddings.words.weight
    transformed = head.norm(functional.gelu(dense(head.transform, hidden)))
    return functional.linear(transformed, words, head.bias)


def embed(projection: nn.Linear, tokens: Tensor) -> Tensor:
    """Give the (B, E) unit vectors of the first of (B, N, D) tokens."""
    return functional.normalize(dense(projection, tokens[:, 0]), dim=-1)


def see(vision: VisionTransformer, images: Tensor) -> Tensor:
    """Encode (B, 3, S, S) images as (B, N, D) tokens."""
    tokens = vision.embed(images)
    for block in cast("Sequence[VisionBlock]", vision.blocks):
        attention = block.attention
        query, key, value = dense(attention.qkv, block.attention_norm(tokens)).chunk(3, dim=-1)
        tokens = tokens + dense(
            attention.output, attend(query, key, value, attention.num_heads, None, 0)
        )
        expanded = functional.gelu(dense(block.mlp_up, block.mlp_norm(tokens)))
        tokens = tokens + dense(block.mlp_down, expanded)
    return vision.norm(tokens)


def read(
    stack: TextTransformer,
    token_ids: Tensor,
    mask: Tensor | None = None,
    memory: Tensor | None = None,
    memory_mask: Tensor | None = None,
    causal: bool = False,
    past: Past | None = None,
) -> Tensor:
    """Run a text stack over (P, L) ids: (P, L, W).

    Args:
        stack: Encoder or decoder.
        token_ids: (P, L).
        mask: (P, L), nonzero at tokens.
        memory: (P, N, D), the image tokens or question states of every text.
        memory_mask: (P, N), nonzero at tokens.
        causal: No token sees a later one.
        past: Keys and values of the tokens before these; receives those of these.
    """
    length = token_ids.shape[1]
    start = past[0][0].shape[1] if past else 0
    positions = torch.arange(start, start + length, device=token_ids.device)
    hidden = stack.embeddings(token_ids, start + length, positions)
    allowed = None if mask is None else mask.bool()[:, None, None, :]
    if causal and length > 1:
        earlier = torch.ones(length, length, dtype=torch.bool, device=token_ids.device).tril()
        allowed = earlier if allowed is None else allowed & earlier
    readable = None if memory_mask is None else memory_mask.bool()[:, None, None, :]
    grown: Past = []
    for number, layer in enumerate(cast("Sequence[TextLayer]", stack.layers)):
        own: SelfAttention = layer.self_attention
        dropout = own.dropout if stack.training else 0.0
        query, key, value = dense(own.qkv, hidden).chunk(3, dim=-1)
        if past:
            key, value = (
                torch.cat(pair, 1) for pair in zip(past[number], (key, value), strict=True)
            )
        grown.append((key, value))
        context = dense(own.output, attend(query, key, value, own.num_heads, allowed, dropout))
        hidden = layer.self_norm(hidden + layer.dropout(context))
        if memory is not None:
            cross = cast("CrossAttention", layer.cross_attention)
            key, value = dense(cross.key_value, memory).chunk(2, dim=-1)
            query = dense(cross.query, hidden)
            context = dense(
                cross.output, attend(query, key, value, cross.num_heads, readable, dropout)
            )
            hidden = layer.cross_norm(hidden + layer.dropout(context))
        expanded = dense(layer.mlp_down, functional.gelu(dense(layer.mlp_up, hidden)))
        hidden = layer.mlp_norm(hidden + layer.dropout(expanded))
    if past is not None:
        past[:] = grown
    return hidden


def starting(token_ids: Tensor, token: int) -> Tensor:
    """Give (P, L) ids with another first token."""
    token_ids = token_ids.clone()
    token_ids[:, 0] = token
    return token_ids


def match(model: Blip, token_ids: Tensor, mask: Tensor, image_tokens: Tensor) -> Tensor:
    """Judge P texts, each with (P, N, D) image tokens of its own: (P, 2) logits."""
    grounded = starting(token_ids, model.special.enc)
    return dense(model.match_head, read(model.text_encoder, grounded, mask, image_tokens)[:, 0])


def beam_search(
    model: Blip, image_tokens: Tensor, prompt: Tensor, decoding: config.Decoding
) -> Tensor:
    """Write captions of exactly `max_length` tokens, before which none may end.

    Args:
        model: A captioner.
        image_tokens: (B, N, D).
        prompt: (1, T), `[DEC]` first.
        decoding: Beams and length; `min_length` equals `max_length`.

    Returns:
        (B, max_length - T) ids.
    """
    assert decoding.min_length == decoding.max_length, "beams that end early are not followed"
    count, num_beams = len(image_tokens), decoding.num_beams
    memory = image_tokens.repeat_interleave(num_beams, dim=0)
    token_ids = prompt.repeat(len(memory), 1)
    sums = torch.full((count, num_beams), -1e9, device=memory.device)
    sums[:, 0] = 0.0
    past: Past = []
    step_ids = token_ids
    while token_ids.shape[1] < decoding.max_length:
        hidden = read(model.text_decoder, step_ids, memory=memory, causal=True, past=past)
        scores = predict(model, hidden)[:, -1].log_softmax(dim=1)
        scores = processed(scores, token_ids, decoding, model.special.sep)
        totals = (scores.view(count, num_beams, -1) + sums[:, :, None]).flatten(1)
        sums, flat = totals.topk(num_beams, dim=1)
        first = torch.arange(count, device=memory.device)[:, None] * num_beams
        parents = (first + flat // model.vocab_size).flatten()
        chosen = (flat % model.vocab_size).view(-1, 1)
        token_ids = torch.cat([token_ids[parents], chosen], dim=1)
        step_ids = chosen
        past[:] = [(key[parents], value[parents]) for key, value in past]
    return token_ids[::num_beams, prompt.shape[1] :]


def sample(
    model: Blip, image_tokens: Tensor, prompt: Tensor, decoding: config.Decoding, draws: Tensor
) -> Tensor:
    """Write captions of exactly `max_length` tokens by nucleus sampling.

    Args:
        model: A captioner.
        image_tokens: (B, N, D).
        prompt: (1, T), `[DEC]` first.
        decoding: Distribution and length.
        draws: (B, max_length - T) in [0, 1): the place of every choice in the distribution.

    Returns:
        (B, max_length - T) ids.
    """
    token_ids = prompt.repeat(len(image_tokens), 1)
    past: Past = []
    step_ids = token_ids
    for draw in draws.T:
        hidden = read(model.text_decoder, step_ids, memory=image_tokens, causal=True, past=past)
        logits = processed(predict(model, hidden)[:, -1], token_ids, decoding, model.special.sep)
        step_ids = pick(*filtered(logits, decoding), draw)
        token_ids = torch.cat([token_ids, step_ids], dim=1)
    return token_ids[:, prompt.shape[1] :]


def pick(probabilities: Tensor, ids: Tensor, draw: Tensor) -> Tensor:
    """Choose from (B, K) probabilities, the likeliest first, by (B,) draws: (B, 1) of the ids."""
    passed = (probabilities.cumsum(dim=1) <= draw[:, None]).sum(dim=1, keepdim=True)
    return ids.gather(1, passed.clamp(max=probabilities.shape[1] - 1))


class Ranked(NamedTuple):
    """What `rank_answers` gives: (B, k) candidates, their (B, k) scores, the (B,) best."""

    candidates: Tensor
    scores: Tensor
    best: Tensor


def rank_answers(
    model: Blip,
    image_tokens: Tensor,
    question_ids: Tensor,
    question_mask: Tensor,
    answer_ids: Tensor,
    answer_mask: Tensor,
    k: int,
) -> Ranked:
    """Rank C answers to B questions: k by their first piece, these by their whole loss.

    Args:
        model: With the parts `vqa`.
        image_tokens: (B, N, D).
        question_ids: (B, L).
        question_mask: (B, L).
        answer_ids: (C, M), padded to the longest of all candidates.
        answer_mask: (C, M).
        k: Candidates to score.
    """
    grounded = starting(question_ids, model.special.enc)
    states = read(model.text_encoder, grounded, question_mask, image_tokens)
    answer_ids = starting(answer_ids, model.special.dec)
    start = answer_ids[:1, :1].expand(len(states), 1)
    first = read(model.text_decoder, start, memory=states, memory_mask=question_mask, causal=True)
    first_probability = predict(model, first)[:, 0].softmax(dim=1)[:, answer_ids[:, 1]]
    candidates = first_probability.topk(k, dim=1).indices
    ids, mask = answer_ids[candidates.flatten()], answer_mask[candidates.flatten()]
    hidden = read(
        model.text_decoder,
        ids,
        mask,
        states.repeat_interleave(k, dim=0),
        question_mask.repeat_interleave(k, dim=0),
        causal=True,
    )
    losses = functional.cross_entropy(
        predict(model, hidden)[:, :-1].transpose(1, 2),
        ids.masked_fill(mask == 0, IGNORED)[:, 1:],
        ignore_index=IGNORED,
        label_smoothing=LABEL_SMOOTHING,
        reduction="none",
    )
    scores = -losses.sum(dim=1).view(-1, k)
    best = candidates.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)
    return Ranked(candidates, scores, best)


def evaluate_retrieval(
    model: Blip, images: Tensor, token_ids: Tensor, mask: Tensor, k: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Score candidates both ways, with the tokens of all images in memory.

    Args:
        model: With the parts `retrieval`.
        images: (I, 3, S, S).
        token_ids: (T, L).
        mask: (T, L).
        k: Candidates of an image, and of a text.
        batch_size: Of the encoders.

    Returns:
        (I, T) and (T, I) scores of the candidates; `NOT_RANKED` elsewhere.
    """
    tokens = torch.cat([see(model.vision, batch) for batch in torch.split(images, batch_size)])
    hidden = [
        read(model.text_encoder, ids, kept)[:, :1]
        for ids, kept in zip(
            torch.split(token_ids, batch_size), torch.split(mask, batch_size), strict=True
        )
    ]
    cosines = (
        embed(model.image_projection, tokens) @ embed(model.text_projection, torch.cat(hidden)).T
    )
    of_images = torch.full_like(cosines, NOT_RANKED)
    for image, row in enumerate(cosines):
        cosine, texts = row.topk(k)
        repeated = tokens[image].expand(k, -1, -1)
        of_images[image, texts] = (
            cosine + match(model, token_ids[texts], mask[texts], repeated)[:, 1]
        )
    of_texts = torch.full_like(cosines.T, NOT_RANKED)
    for text, row in enumerate(cosines.T):
        cosine, wanted = row.topk(k)
        logits = match(
            model, token_ids[text].expand(k, -1), mask[text].expand(k, -1), tokens[wanted]
        )
        of_texts[text, wanted] = cosine + logits[:, 1]
    return of_images, of_texts


def pretraining_losses(
    objective: PretrainObjective,
    batch: Batch,
    position: Position,
    negatives: Negatives | None = None,
) -> Tensor:
    """Compute ITC, ITM and LM of a step on the objective's weights, moving twin and queue on: (3,).

    Args:
        objective: Ours, whose weights are used.
        batch: B pairs, texts padded to the length of the use.
        position: Where in the run.
        negatives: Instead of drawn ones.
    """
    model, contrast = objective.model, objective.contrast
    special, mask = model.special, batch.attention_mask
    with torch.no_grad():
        model.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
    tokens = see(model.vision, batch.images)
    image_embed = embed(model.image_projection, tokens)
    text_embed = embed(model.text_projection, read(model.text_encoder, batch.token_ids, mask))
    with torch.no_grad():
        twin_image, twin_text = _follow(objective, batch)
        images = torch.cat([twin_image, contrast.queue.images])
        texts = torch.cat([twin_text, contrast.queue.texts])
        alpha = ramped_alpha(contrast.settings, position)
        own = torch.eye(len(batch), len(texts), device=texts.device)
        image_targets, text_targets = (
            alpha * (twin @ candidates.T / model.temperature).softmax(dim=1) + (1 - alpha) * own
            for twin, candidates in ((twin_image, texts), (twin_text, images))
        )
    image_logits = image_embed @ texts.T / model.temperature
    text_logits = text_embed @ images.T / model.temperature
    image_loss = -(image_logits.log_softmax(dim=1) * image_targets).sum(dim=1).mean()
    text_loss = -(text_logits.log_softmax(dim=1) * text_targets).sum(dim=1).mean()
    contrast.queue.enqueue(twin_image, twin_text, batch.image_ids)
    if negatives is None:
        negatives = _draw(image_logits.detach(), text_logits.detach())
    itm = _matching_loss(model, batch, tokens, negatives)
    ids = starting(batch.token_ids, special.dec)
    hidden = read(model.text_decoder, ids, mask, tokens, causal=True)
    lm = functional.cross_entropy(
        predict(model, hidden)[:, :-1].flatten(0, 1),
        ids.masked_fill(mask == 0, IGNORED)[:, 1:].flatten(),
        ignore_index=IGNORED,
        label_smoothing=LABEL_SMOOTHING,
    )
    return torch.stack([(image_loss + text_loss) / 2, itm, lm])


def _follow(objective: PretrainObjective, batch: Batch) -> tuple[Tensor, Tensor]:
    """Update the twin, parameter by parameter, and give its (B, E) unit vectors."""
    twin, momentum = objective.contrast.twin, objective.contrast.twin.momentum
    for name, follower in twin.named_parameters():
        leader = objective.model.get_parameter(name)
        follower.copy_(follower * momentum + leader * (1.0 - momentum))
    image = dense(twin.image_projection, see(twin.vision, batch.images)[:, 0])
    hidden = read(twin.text_encoder, batch.token_ids, batch.attention_mask)
    text = dense(twin.text_projection, hidden[:, 0])
    return functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)


def _draw(image_logits: Tensor, text_logits: Tensor) -> Negatives:
    """Draw a negative image for each text, then a negative text for each image, one by one."""
    drawn = []
    for logits in (text_logits, image_logits):
        weights = logits[:, : len(logits)].softmax(dim=1) + NEGATIVE_FLOOR
        weights.fill_diagonal_(0.0)
        drawn.append(torch.tensor([int(row.multinomial(1)) for row in weights]).to(logits.device))
    return Negatives(*drawn)


def _matching_loss(model: Blip, batch: Batch, tokens: Tensor, negatives: Negatives) -> Tensor:
    """Judge the B pairs, then the 2B wrong ones."""
    ids, mask = batch.token_ids, batch.attention_mask
    right = match(model, ids, mask, tokens)
    wrong = match(
        model,
        torch.cat([ids, ids[negatives.texts]]),
        torch.cat([mask, mask[negatives.texts]]),
        torch.cat([tokens[negatives.images], tokens]),
    )
    labels = torch.cat(
        [negatives.images.new_ones(len(right)), negatives.images.new_zeros(len(wrong))]
    )
    return functional.cross_entropy(torch.cat([right, wrong]), labels)
