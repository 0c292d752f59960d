import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from blip import config
from blip.models.med import TextCache, TextTransformer

TOLERANCE = 1e-5  # measured: 1.4e-6
DOUBLE = 1e-10  # measured: 1.8e-14; in single precision narrow norms amplify rounding, at times
SIZES = config.Text(
    width=16, num_layers=2, num_heads=2, intermediate=32, max_positions=12, dropout=0.0
)


def build(seed=0, share=None):
    torch.manual_seed(seed)
    model = TextTransformer(SIZES, 50, 24, share).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + name.endswith("norm.weight"))
    return model


def plain(model, token_ids, mask, image_tokens, causal):
    """The whole transformer, text by text, without padding, caches or shared projections."""
    rows = []
    for index, ids in enumerate(token_ids):
        ids = ids[: int(mask[index].sum())]
        embeddings = model.embeddings
        hidden = embeddings.norm(embeddings.words(ids) + embeddings.positions.weight[: len(ids)])
        for layer in model.layers:
            query, key, value = layer.self_attention.qkv(hidden).chunk(3, dim=-1)
            seen = attend(query, key, value, causal)
            hidden = layer.self_norm(hidden + layer.self_attention.output(seen))
            if image_tokens is not None:
                cross = layer.cross_attention
                key, value = cross.key_value(image_tokens[index]).chunk(2, dim=-1)
                seen = attend(cross.query(hidden), key, value, False)
                hidden = layer.cross_norm(hidden + cross.output(seen))
            expanded = layer.mlp_down(functional.gelu(layer.mlp_up(hidden)))
            hidden = layer.mlp_norm(hidden + expanded)
        rows.append(hidden)
    return rows


def attend(query, key, value, causal):
    heads = []
    for q, k, v in zip(query.chunk(2, -1), key.chunk(2, -1), value.chunk(2, -1), strict=True):
        scores = q @ k.T / q.shape[-1] ** 0.5
        if causal:
            above = torch.ones_like(scores, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(above, -torch.inf)
        heads.append(scores.softmax(dim=-1) @ v)
    return torch.cat(heads, dim=-1)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(0, 2**31),
    st.sampled_from(["text", "multimodal", "decoder"]),
)
def test_every_role_is_the_plain_transformer(lengths, seed, role):
    model = build().double()
    torch.manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    token_ids = torch.randint(1, 50, mask.shape) * mask
    images = None if role == "text" else torch.randn(3, 5, 24, dtype=torch.float64)
    index = None if role == "text" else torch.randint(3, (len(lengths),))
    memory = None if images is None else model.project(images)
    decoder = role == "decoder"
    ours = model(token_ids, None if decoder else mask, memory, index, causal=decoder)
    chosen = None if images is None else images[index]
    expected = plain(model, token_ids, mask, chosen, decoder)
    for row, (hidden, length) in enumerate(zip(expected, lengths, strict=True)):
        torch.testing.assert_close(ours[row, :length], hidden, atol=DOUBLE, rtol=0)
    if not decoder:
        pooled = model(token_ids, mask, memory, index, pooled=True)
        torch.testing.assert_close(pooled, ours[:, :1], atol=DOUBLE, rtol=0)


def test_a_decoder_does_not_look_ahead():
    model, ids = build(), torch.randint(1, 50, (2, 8))
    memory = model.project(torch.randn(2, 5, 24))
    changed = ids.clone()
    changed[:, 5:] = 1
    before = model(ids, None, memory, causal=True)
    after = model(changed, None, memory, causal=True)
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=TOLERANCE, rtol=0)
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 0.01


def test_decoding_with_a_cache_is_decoding_at_once():
    model, ids = build(), torch.randint(1, 50, (4, 8))
    memory = model.project(torch.randn(2, 5, 24))  # two texts an image
    whole = model(ids, None, memory, causal=True)
    cache = TextCache(2, capacity=10)
    steps = [model(ids[:, :3], None, memory, causal=True, cache=cache)]
    for place in range(3, 8):
        step = model(ids[:, place : place + 1], None, memory, causal=True, cache=cache)
        steps.append(step)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=TOLERANCE, rtol=0)


def test_two_stacks_share_all_but_self_attention():
    encoder = build()
    decoder = TextTransformer(SIZES, 50, 24, share=encoder)
    own = {name for name, _ in decoder.named_parameters()}
    of_encoder = {id(p) for p in encoder.parameters()}
    shared = {name for name, p in decoder.named_parameters() if id(p) in of_encoder}
    assert own - shared == {name for name in own if ".self_" in name}


def test_texts_beyond_the_positions_are_refused():
    with pytest.raises(ValueError, match="13 tokens for a model of 12 positions"):
        build()(torch.ones(1, 13, dtype=torch.int64))
