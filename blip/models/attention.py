"""Multi-head attention: of tokens among themselves, or over a memory projected once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        pooled: bool = False,
        cache: "KeyValueCache | None" = None,
    ) -> Tensor:
        """Attend.

        Args:
            hidden: (B, L, W) tokens.
            mask: (B, 1, 1, L) bool, true at the tokens that may be attended to.
            causal: Token i sees tokens up to i only.
            pooled: Only the first token asks; (B, 1, W) comes back.
            cache: Keys and values of the tokens before these; receives those of these.

        Returns:
            (B, L, W), or (B, 1, W) if `pooled`.
        """
        if pooled:
            width = hidden.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            query = functional.linear(hidden[:, :1], weight[:width], bias[:width])
            key, value = functional.linear(hidden, weight[width:], bias[width:]).chunk(2, dim=-1)
        else:
            query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        key, value = split_heads(key, self.num_heads), split_heads(value, self.num_heads)
        if cache is not None:
            key, value = cache.extend(key, value)
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
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(memory_width, 2 * width)
        self.output = nn.Linear(width, width)

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
        self.merge = nn.Linear(2 * width, width) if merge else None

    def project(self, tokens: Tensor) -> Tensor:
        """Give the keys and values (B, 2N, 2W) of (B, 2N, D) tokens of two images."""
        first, second = tokens.chunk(2, dim=1)
        return torch.cat([self.first.project(first), self.second.project(second)], dim=1)

    def forward(self, hidden: Tensor, key_value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend, with the arguments of `CrossAttention`, but for (B, 2N, 2W) keys and values."""
        assert mask is None, "image tokens are never masked"
        of_first, of_second = key_value.chunk(2, dim=1)
        first, second = self.first(hidden, of_first), self.second(hidden, of_second)
        if self.merge is None:
            return (first + second) / 2
        return self.merge(torch.cat([first, second], dim=-1))


class KeyValueCache:
    """Keys and values of the tokens that one self-attention has already read."""

    def __init__(self) -> None:
        self._pair: tuple[Tensor, Tensor] | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append (R, H, L, W/H) keys and values; give all of them."""
        if self._pair is not None:
            key = torch.cat([self._pair[0], key], dim=2)
            value = torch.cat([self._pair[1], value], dim=2)
        self._pair = key, value
        return self._pair

    def select(self, rows: Tensor) -> None:
        """Keep the rows of the given indices, in their order, repeats included."""
        assert self._pair is not None, "select follows extend"
        self._pair = self._pair[0].index_select(0, rows), self._pair[1].index_select(0, rows)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """View (B, L, W) as (B, H, L, W/H)."""
    return tokens.reshape(*tokens.shape[:2], num_heads, -1).transpose(1, 2)


def join_heads(context: Tensor) -> Tensor:
    """Bring (B, H, L, W/H) back to (B, L, W)."""
    return context.transpose(1, 2).flatten(2)
