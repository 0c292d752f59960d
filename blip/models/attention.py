"""Multi-head attention: of tokens among themselves, or over a memory projected once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip.models.linear import Linear, batched_linear, linear


class SelfAttention(nn.Module):
    """Scaled dot-product attention of tokens among themselves, with its output projection.

    Args:
        width: Width of the tokens.
        num_heads: Heads; divides `width`.
        dropout: On the attention probabilities, while training.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = Linear(width, 3 * width)
        self.output = Linear(width, width)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        pooled: bool = False,
        cache: "KeyValueCache | None" = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            hidden: (B, L, W) tokens.
            mask: Bool, true at the tokens that may be attended to: (B, 1, 1, L), or with a cache
                (1, 1, L, capacity).
            causal: Token i sees tokens up to i only.
            pooled: Only the first token asks; (B, 1, W) comes back.
            cache: Keys and values of the tokens before these; receives those of these.
            positions: (L,) places of these tokens in the cache.

        Returns:
            (B, L, W), or (B, 1, W) if `pooled`.
        """
        if pooled:
            width = hidden.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            query = linear(hidden[:, :1], weight[:width], bias[:width])
            key, value = linear(hidden, weight[width:], bias[width:]).chunk(2, dim=-1)
        else:
            query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        key, value = split_heads(key, self.num_heads), split_heads(value, self.num_heads)
        if cache is not None:
            assert positions is not None, "a cache is written at positions"
            key, value = cache.extend(key, value, positions)
        context = functional.scaled_dot_product_attention(
            split_heads(query, self.num_heads),
            key,
            value,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(join_heads(context))

    def along(self, hidden: Tensor, paths: Sequence[Tensor]) -> Tensor:
        """Attend, each of the prefixes of some texts with the prefixes on its path alone.

        Args:
            hidden: (M, 1, W), the shortest prefixes first.
            paths: Of `Prefixes`.

        Returns:
            (M, 1, W).
        """
        width = hidden.shape[-1]
        query, key_value = torch.split(self.qkv(hidden), [width, 2 * width], dim=-1)
        queries = torch.split(split_heads(query, self.num_heads), [len(path) for path in paths])
        contexts = []
        for asked, path in zip(queries, paths, strict=True):
            key, value = key_value[:, 0][path].chunk(2, dim=-1)
            key, value = split_heads(key, self.num_heads), split_heads(value, self.num_heads)
            contexts.append(functional.scaled_dot_product_attention(asked, key, value))
        return self.output(join_heads(torch.cat(contexts)))


class CrossAttention(nn.Module):
    """Attention of text tokens over a memory, whose keys and values are projected apart.

    Args:
        width: Width of the text tokens.
        memory_width: Width of the memory's tokens, of an image or of a question.
        num_heads: Heads; divides `width`.
        dropout: On the attention probabilities, while training.
    """

    def __init__(self, width: int, memory_width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = Linear(width, width)
        self.key_value = Linear(memory_width, 2 * width)
        self.output = Linear(width, width)

    def project(self, tokens: Tensor) -> Tensor:
        """Give the keys and values (B, N, 2W) of (B, N, D) tokens, to be read any number of times."""
        return self.key_value(tokens)

    def forward(self, hidden: Tensor, key_value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Several texts may read one memory: their tokens are then queries of one attention, and
        nothing is repeated.

        Args:
            hidden: (B * G, L, W) text tokens, the G texts of a memory one after the other.
            key_value: (B, N, 2W) from `project`.
            mask: (B, 1, 1, N) bool, true at the tokens that may be attended to.

        Returns:
            (B * G, L, W).
        """
        context = functional.scaled_dot_product_attention(
            *self.split(hidden, key_value),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(join_heads(context).view_as(hidden))

    def over_tokens(self, hidden: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend without keys and values: the same function, cheaper where queries are few.

        With k = K t and v = V t, a score is q . k = (K' q) . t, and a context V (sum of p t): each
        head asks in the memory's own width, and what it read is projected after. The key's bias
        adds the same to all scores of a query, so it falls out. Over the layers and steps of a
        decoder the memory's tokens are one tensor, not one a layer.

        Args:
            hidden: (B * G, L, W) text tokens, the G texts of a memory one after the other.
            tokens: (B, N, D).
            mask: (B, 1, 1, N) bool, true at the tokens that may be attended to.

        Returns:
            (B * G, L, W).
        """
        assert not (self.training and self.dropout), "the value's bias counts on shares of sum 1"
        count, width = len(tokens), hidden.shape[-1]
        head_width = width // self.num_heads
        key, value = self.key_value.weight.view(2, self.num_heads, head_width, -1)
        query = self.query(hidden).view(-1, self.num_heads, head_width) * head_width**-0.5
        asked = (query.transpose(0, 1) @ key).view(self.num_heads, count, -1, tokens.shape[-1])
        scores = batched_linear(asked.transpose(0, 1).flatten(1, 2), tokens)  # (B, H GL, N)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, 0], -torch.inf)
        read = batched_linear(scores.softmax(dim=-1), tokens.transpose(1, 2))  # (B, H GL, D)
        read = read.view(count, self.num_heads, -1, tokens.shape[-1]).transpose(0, 1).flatten(1, 2)
        context = (read @ value.transpose(1, 2)).transpose(0, 1).reshape(hidden.shape)
        return self.output(context + self.key_value.bias[width:])

    def split(self, hidden: Tensor, key_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries, keys and values (B, H, ., W/H) of the arguments of `forward`."""
        query = self.query(hidden).reshape(len(key_value), -1, hidden.shape[-1])
        key, value = key_value.chunk(2, dim=-1)
        return (
            split_heads(query, self.num_heads),
            split_heads(key, self.num_heads),
            split_heads(value, self.num_heads),
        )


class PairedCrossAttention(nn.Module):
    """Attention of a sentence over two images, each with weights of its own (BLIP.md 5.4).

    The memory holds the tokens of the first image, then those of the second.

    Args:
        width: Width of the text tokens.
        memory_width: Width of the image tokens.
        num_heads: Heads; divides `width`.
        dropout: On the attention probabilities, while training.
        merge: Learn how the two contexts become one; else their mean is taken.
    """

    def __init__(
        self, width: int, memory_width: int, num_heads: int, dropout: float, merge: bool
    ) -> None:
        super().__init__()
        self.first = CrossAttention(width, memory_width, num_heads, dropout)
        self.second = CrossAttention(width, memory_width, num_heads, dropout)
        self.merge = Linear(2 * width, width) if merge else None

    def project(self, tokens: Tensor) -> Tensor:
        """Give the keys and values (B, 2N, 2W) of (B, 2N, D) tokens of two images."""
        first, second = tokens.chunk(2, dim=1)
        return torch.cat([self.first.project(first), self.second.project(second)], dim=1)

    def forward(self, hidden: Tensor, key_value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend, with the arguments of `CrossAttention`, but for (B, 2N, 2W) keys and values."""
        assert mask is None, "image tokens are never masked"
        of_first, of_second = key_value.chunk(2, dim=1)
        return self._merge(self.first(hidden, of_first), self.second(hidden, of_second))

    def over_tokens(self, hidden: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend without keys and values, over the (B, 2N, D) tokens themselves."""
        assert mask is None, "image tokens are never masked"
        first, second = tokens.chunk(2, dim=1)
        return self._merge(
            self.first.over_tokens(hidden, first), self.second.over_tokens(hidden, second)
        )

    def _merge(self, first: Tensor, second: Tensor) -> Tensor:
        if self.merge is None:
            return (first + second) / 2
        return self.merge(torch.cat([first, second], dim=-1))


class KeyValueCache:
    """Keys and values of the tokens that one self-attention has read, with room for those to come.

    Its tensors keep their shape and place while a text grows, so that a step can be recorded.

    Args:
        capacity: Tokens of a text at most.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._pair: tuple[Tensor, ...] = ()

    def extend(self, key: Tensor, value: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Put (R, H, L, W/H) keys and values at (L,) positions; give all: (R, H, capacity, W/H)."""
        if not self._pair:
            rows, heads, _, width = key.shape
            self._pair = tuple(key.new_zeros(rows, heads, self._capacity, width) for _ in "kv")
        for room, new in zip(self._pair, (key, value), strict=True):
            room.index_copy_(2, positions, new)
        return self._pair

    def select(self, rows: Tensor) -> None:
        """Keep the rows of the given indices, in their order, repeats included."""
        assert self._pair, "select follows extend"
        self._pair = tuple(room.index_select(0, rows) for room in self._pair)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """View (B, L, W) as (B, H, L, W/H)."""
    return tokens.reshape(*tokens.shape[:2], num_heads, -1).transpose(1, 2)


def join_heads(context: Tensor) -> Tensor:
    """Bring (B, H, L, W/H) back to (B, L, W)."""
    return context.transpose(1, 2).flatten(2)
