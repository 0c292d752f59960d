"""Multi-head attention: of tokens among themselves, or over images projected once."""

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


class CrossAttention(nn.Module):
    """Attention of text tokens over image tokens, whose keys and values are projected apart.

    Args:
        width: Width of the text tokens.
        memory_width: Width of the image tokens.
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

    def forward(self, hidden: Tensor, key_value: Tensor) -> Tensor:
        """Attend.

        Several texts may read one image: their tokens are then queries of one attention, and
        nothing is repeated.

        Args:
            hidden: (B * G, L, W) text tokens, the G texts of an image one after the other.
            key_value: (B, N, 2W) what `self.key_value` made of the image tokens.

        Returns:
            (B * G, L, W).
        """
        num_images, width = key_value.shape[0], hidden.shape[-1]
        key, value = key_value.chunk(2, dim=-1)
        context = functional.scaled_dot_product_attention(
            split_heads(self.query(hidden).reshape(num_images, -1, width), self.num_heads),
            split_heads(key, self.num_heads),
            split_heads(value, self.num_heads),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(join_heads(context).view_as(hidden))


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
