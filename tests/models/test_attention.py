import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.models.attention import (
    CrossAttention,
    KeyValueCache,
    PairedCrossAttention,
    SelfAttention,
)

TOLERANCE = 2e-6  # measured: 3e-7


def plain(query, key, value, num_heads, allowed):
    """Attention as the paper writes it, one row and head at a time."""
    rows = []
    for q, k, v, may in zip(query, key, value, allowed, strict=True):
        heads = []
        width = q.shape[-1] // num_heads
        for head in range(num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / width**0.5
            scores = scores.masked_fill(~may, -torch.inf)
            heads.append(scores.softmax(dim=-1) @ v[:, part])
        rows.append(torch.cat(heads, dim=-1))
    return torch.stack(rows)


shapes = st.tuples(
    st.integers(1, 4), st.integers(1, 7), st.sampled_from([1, 2, 4]), st.integers(0, 2**31)
)


@settings(deadline=None, max_examples=25)
@given(shapes, st.booleans())
def test_self_attention_is_the_plain_one(shape, causal):
    batch, length, num_heads, seed = shape
    torch.manual_seed(seed)
    attention = SelfAttention(8, num_heads)
    hidden = torch.randn(batch, length, 8)
    lengths = torch.randint(1, length + 1, (batch,))
    mask = torch.arange(length) < lengths[:, None]
    allowed = mask[:, None, :].expand(-1, length, -1)
    if causal:
        allowed = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, -1, -1)
    query, key, value = attention.qkv(hidden).chunk(3, dim=-1)
    expected = attention.output(plain(query, key, value, num_heads, allowed))
    ours = attention(hidden, None if causal else mask[:, None, None], causal=causal)
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)
    if not causal:
        first = attention(hidden, mask[:, None, None], pooled=True)
        torch.testing.assert_close(first, expected[:, :1], atol=TOLERANCE, rtol=0)


@settings(deadline=None, max_examples=25)
@given(shapes, st.integers(1, 3))
def test_texts_of_one_image_are_queries_of_one_attention(shape, texts_per_image):
    num_images, length, num_heads, seed = shape
    torch.manual_seed(seed)
    attention = CrossAttention(8, 6, num_heads, dropout=0.0)
    hidden = torch.randn(num_images * texts_per_image, length, 8)
    key_value = attention.key_value(torch.randn(num_images, 5, 6))
    each = key_value.repeat_interleave(texts_per_image, dim=0)
    key, value = each.chunk(2, dim=-1)
    allowed = torch.ones(len(hidden), length, 5, dtype=torch.bool)
    expected = plain(attention.query(hidden), key, value, num_heads, allowed)
    expected = attention.output(expected)
    ours = attention(hidden, key_value)
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def test_cache_keeps_and_reorders_rows():
    cache = KeyValueCache(capacity=3)
    rows = torch.arange(3.0).view(3, 1, 1, 1)
    cache.extend(rows, rows + 10, torch.tensor([0]))
    cache.select(torch.tensor([2, 0, 2]))
    key, value = cache.extend(rows + 5, rows + 6, torch.tensor([1]))
    assert key.squeeze().tolist() == [[2, 5, 0], [0, 6, 0], [2, 7, 0]]
    assert value.squeeze().tolist() == [[12, 6, 0], [10, 7, 0], [12, 8, 0]]


def test_dropout_works_while_training_only():
    torch.manual_seed(0)
    attention = SelfAttention(8, 2, dropout=0.5)
    hidden = torch.randn(2, 6, 8)
    assert not torch.equal(attention(hidden), attention(hidden))
    attention.eval()
    assert torch.equal(attention(hidden), attention(hidden))


def test_select_needs_content():
    with pytest.raises(AssertionError):
        KeyValueCache(1).select(torch.tensor([0]))


@settings(deadline=None, max_examples=40)
@given(
    shapes,
    st.integers(1, 3),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(["one", "two", "merged"]),
)
def test_attention_over_the_tokens_is_that_over_keys_and_values(
    shape, texts_per_memory, num_tokens, padded, kind
):
    num_memories, length, num_heads, seed = shape
    torch.manual_seed(seed)
    attention = CrossAttention(8, 6, num_heads, dropout=0.1)
    if kind != "one":
        attention = PairedCrossAttention(8, 6, num_heads, dropout=0.1, merge=kind == "merged")
        padded, num_tokens = False, 2 * num_tokens
    attention.eval()
    hidden = torch.randn(num_memories * texts_per_memory, length, 8)
    tokens = torch.randn(num_memories, num_tokens, 6)
    mask = None
    if padded:
        lengths = torch.randint(1, num_tokens + 1, (num_memories,))
        mask = (torch.arange(num_tokens) < lengths[:, None])[:, None, None]
    ours = attention.over_tokens(hidden, tokens, mask)
    expected = attention(hidden, attention.project(tokens), mask)
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)
