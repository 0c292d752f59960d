"""The mixture of encoder and decoder (MED): one text transformer in three roles (BLIP.md 1.3).

It reads text alone (text encoder), text with an image (image-grounded encoder), or text with a
memory and no look ahead (decoder). The roles differ in the arguments of one forward pass. The
memory is an image, two images (NLVR2), the frames of a video, or the states of a question (VQA).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from blip import config
from blip.models.attention import (
    CrossAttention,
    KeyValueCache,
    PairedCrossAttention,
    SelfAttention,
)
from blip.models.linear import Linear, linear
from blip.models.prefixes import Prefixes

NORM_EPS = 1e-12
FIRST_MERGING_LAYER = 6  # of those that read two images: layers before it take the mean


@dataclass(frozen=True)
class Memory:
    """What cross-attention reads of B memories.

    Keys and values depend on the memory and the layer only: computed once, they serve every text,
    every negative and every decoding step. Where few tokens read a memory, even once is too much,
    and they attend over the memory's own tokens.

    Attributes:
        tokens: (B, N, D), if they are read as they are; else `None`.
        key_values: (B, N, 2W) of each layer, if they were projected; else none.
        mask: (B, N) bool, true at tokens; `None` where nothing is padding, as in images.
    """

    tokens: Tensor | None
    key_values: list[Tensor]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self._any)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self._any.device

    @property
    def _any(self) -> Tensor:
        return self.key_values[0] if self.tokens is None else self.tokens

    def select(self, rows: Tensor | slice) -> "Memory":
        """Keep some memories: by slice without a copy, or by (R,) indices, repeats included."""
        return Memory(
            None if self.tokens is None else self.tokens[rows],
            [layer[rows] for layer in self.key_values],
            None if self.mask is None else self.mask[rows],
        )


class TextTransformer(nn.Module):
    """A post-norm BERT with a cross-attention in every layer, skipped where there is no memory.

    Args:
        text: Sizes.
        vocab_size: Token ids, special tokens included.
        memory_width: Width of the memory's tokens.
        share: Another stack whose everything but self-attention this one uses, as parameters in
            common (BLIP.md 1.4).
        paired: The memory is of two images, with weights for each (BLIP.md 5.4).

    Attributes:
        checkpoint_layers: Of how many last layers to keep the input alone while training, and to
            compute them again for the gradient.
    """

    embeddings: "TextEmbeddings"
    layers: nn.ModuleList
    checkpoint_layers = 0

    def __init__(
        self,
        text: config.Text,
        vocab_size: int,
        memory_width: int,
        share: "TextTransformer | None" = None,
        paired: bool = False,
    ) -> None:
        super().__init__()
        shared: Iterable[nn.Module | None] = [None] * text.num_layers
        if share is not None:
            shared = share.layers
        self._head_width = text.width // text.num_heads
        self.embeddings = TextEmbeddings(text, vocab_size) if share is None else share.embeddings
        self.layers = nn.ModuleList(
            TextLayer(text, memory_width, number, paired, layer)
            for number, layer in enumerate(shared)
        )

    def forward(
        self,
        token_ids: Tensor,
        mask: Tensor | None = None,
        memory: Memory | None = None,
        memory_index: Tensor | None = None,
        causal: bool = False,
        pooled: bool = False,
        cache: "TextCache | None" = None,
    ) -> Tensor:
        """Encode texts.

        Args:
            token_ids: (P, L) int64.
            mask: (P, L), nonzero at tokens; `None` where no padding is in the way (a decoder pads
                on the right).
            memory: What `project` gave for B memories; `None` skips the cross-attention.
            memory_index: (P,) the memory of each text. `None`: P is a multiple of B, the texts of
                a memory stand together.
            causal: Decode: no token sees a later one. With a cache none does anyway.
            pooled: Compute the last layer for the first token alone; (P, 1, W) comes back.
            cache: Of the tokens before these, when decoding step by step.

        Returns:
            (P, L, W) hidden states of the last layer.
        """
        positions = None if cache is None else cache.advance(token_ids.shape[1])
        length = token_ids.shape[1] if cache is None else cache.length
        hidden = self.embeddings(token_ids, length, positions)
        attend = None if mask is None else mask.bool()[:, None, None, :]
        if cache is not None and positions is not None:
            attend = cache.visible(positions)
        readable = None
        if memory is not None and memory.mask is not None:
            padding = memory.mask if memory_index is None else memory.mask[memory_index]
            readable = padding[:, None, None, :]
        tokens = None if memory is None else memory.tokens
        if tokens is not None and memory_index is not None:
            tokens = tokens.index_select(0, memory_index)
        last = len(self.layers) - 1
        recompute = self.training and torch.is_grad_enabled() and cache is None
        first_checkpointed = len(self.layers) - (self.checkpoint_layers if recompute else 0)
        for number, layer in enumerate(self.layers):
            arguments = (
                hidden,
                attend,
                tokens,
                memory.key_values[number] if memory and tokens is None else None,
                memory_index,
                readable,
                causal and cache is None,
                pooled and number == last,
                None if cache is None else cache.layers[number],
                positions,
            )
            if number >= first_checkpointed:
                hidden = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                hidden = layer(*arguments)
        return hidden

    def read_prefixes(self, prefixes: Prefixes, memory: Memory) -> Tensor:
        """Decode the M prefixes of some texts at once, without dropout: (M, W) of the last layer.

        Each is read as the last token of a text that begins so; what texts have in common is
        computed once.
        """
        hidden = torch.cat(
            [
                self.embeddings(ids[:, None], place + 1, ids.new_full((1,), place))
                for place, ids in enumerate(prefixes.token_ids)
            ]
        )
        readable = None if memory.mask is None else memory.mask[:, None, None, :]
        for layer, key_value in zip(self.layers, memory.key_values, strict=True):
            assert isinstance(layer, TextLayer)
            hidden = layer.read_prefixes(hidden, prefixes, key_value, readable)
        return hidden[:, 0]

    def project(
        self, tokens: Tensor, mask: Tensor | None = None, num_readers: int | None = None
    ) -> Memory:
        """Make a memory.

        Args:
            tokens: (B, N, D).
            mask: (B, N), nonzero where they count.
            num_readers: How many text tokens will read each memory at most, where that is known
                and there is no dropout. If they are fewer than a head is wide, keys and values
                would cost more than they save, and are not made (`CrossAttention.over_tokens`).
        """
        mask = None if mask is None else mask.bool()
        if num_readers is not None and num_readers < self._head_width:
            if torch.is_autocast_enabled(tokens.device.type):  # once, not in every layer and step
                tokens = tokens.to(torch.get_autocast_dtype(tokens.device.type))
            return Memory(tokens, [], mask)
        layers = (layer for layer in self.layers if isinstance(layer, TextLayer))
        return Memory(None, [layer.cross_attention.project(tokens) for layer in layers], mask)


class TextEmbeddings(nn.Module):
    """Word plus position embedding; there is no segment embedding in BLIP."""

    def __init__(self, text: config.Text, vocab_size: int) -> None:
        super().__init__()
        self.words = _blank_embedding(vocab_size, text.width)
        self.positions = _blank_embedding(text.max_positions, text.width)
        self.norm = nn.LayerNorm(text.width, eps=NORM_EPS)
        self.dropout = nn.Dropout(text.dropout)

    def forward(self, token_ids: Tensor, length: int, positions: Tensor | None) -> Tensor:
        """Embed (P, L) ids at (L,) positions, else from the first on, of texts of a length so far."""
        if length > self.positions.num_embeddings:
            raise ValueError(
                f"texts of {length} tokens for a model of {self.positions.num_embeddings} positions"
            )
        weight = self.positions.weight
        places = weight[:length] if positions is None else weight.index_select(0, positions)
        return self.dropout(self.norm(self.words(token_ids) + places))


def _blank_embedding(rows: int, width: int) -> nn.Embedding:
    """Make an embedding that draws no weights: `Blip` does, and on the meta device nobody must."""
    weight = torch.empty(rows, width)
    return nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]


class TextLayer(nn.Module):
    """Self-attention, cross-attention if there is a memory, MLP: each with residual, then norm."""

    cross_attention: CrossAttention | PairedCrossAttention
    cross_norm: nn.LayerNorm
    mlp_up: nn.Linear
    mlp_down: nn.Linear
    mlp_norm: nn.LayerNorm

    def __init__(
        self,
        text: config.Text,
        memory_width: int,
        number: int,
        paired: bool,
        share: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.self_attention = SelfAttention(text.width, text.num_heads, text.dropout)
        self.self_norm = nn.LayerNorm(text.width, eps=NORM_EPS)
        self.dropout = nn.Dropout(text.dropout)
        if isinstance(share, TextLayer):
            self.cross_attention = share.cross_attention
            self.cross_norm = share.cross_norm
            self.mlp_up, self.mlp_down, self.mlp_norm = share.mlp_up, share.mlp_down, share.mlp_norm
        else:
            sizes = text.width, memory_width, text.num_heads, text.dropout
            self.cross_attention = (
                PairedCrossAttention(*sizes, merge=number >= FIRST_MERGING_LAYER)
                if paired
                else CrossAttention(*sizes)
            )
            self.cross_norm = nn.LayerNorm(text.width, eps=NORM_EPS)
            self.mlp_up = Linear(text.width, text.intermediate)
            self.mlp_down = Linear(text.intermediate, text.width)
            self.mlp_norm = nn.LayerNorm(text.width, eps=NORM_EPS)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        tokens: Tensor | None,
        key_value: Tensor | None,
        memory_index: Tensor | None,
        readable: Tensor | None,
        causal: bool,
        pooled: bool,
        cache: KeyValueCache | None,
        positions: Tensor | None,
    ) -> Tensor:
        """Map (P, L, W) to (P, L, W), or to (P, 1, W) of the first token if `pooled`."""
        if key_value is not None and memory_index is not None:
            # Here, and not before all layers: what is selected is recomputed with its layer.
            key_value = key_value.index_select(0, memory_index)
        attended = self.self_attention(hidden, mask, causal, pooled, cache, positions)
        hidden = self.self_norm((hidden[:, :1] if pooled else hidden) + self.dropout(attended))
        seen = None
        if tokens is not None:
            seen = self.cross_attention.over_tokens(hidden, tokens, readable)
        elif key_value is not None:
            seen = self.cross_attention(hidden, key_value, readable)
        if seen is not None:
            hidden = self.cross_norm(hidden + self.dropout(seen))
        return self._expand(hidden)

    def read_prefixes(
        self, hidden: Tensor, prefixes: Prefixes, key_value: Tensor, readable: Tensor | None
    ) -> Tensor:
        """Map (M, 1, W) of prefixes to (M, 1, W)."""
        hidden = self.self_norm(hidden + self.self_attention.along(hidden, prefixes.paths))
        seen = self.cross_attention(prefixes.by_memory(hidden), key_value, readable)
        return self._expand(self.cross_norm(hidden + prefixes.in_order(seen)))

    def _expand(self, hidden: Tensor) -> Tensor:
        expanded = self.mlp_down(functional.gelu(self.mlp_up(hidden)))
        return self.mlp_norm(hidden + self.dropout(expanded))


class TextCache:
    """What a decoder keeps of the tokens it has read, so that a step computes one token only.

    Args:
        num_layers: Of the decoder.
        capacity: Tokens of a text at most.
        device: Where the decoder is.
    """

    def __init__(self, num_layers: int, capacity: int, device: torch.device | str = "cpu") -> None:
        self.layers = [KeyValueCache(capacity) for _ in range(num_layers)]
        self.length = 0
        self._places = torch.arange(capacity, device=device)
        self._next = torch.zeros((), dtype=torch.int64, device=device)

    def advance(self, num_tokens: int) -> Tensor:
        """Count new tokens; give their (L,) positions. A recorded step counts on the device alone."""
        self.length += num_tokens
        positions = self._places[:num_tokens] + self._next
        self._next += num_tokens
        return positions

    def visible(self, positions: Tensor) -> Tensor:
        """Say which places tokens at (L,) positions may look at: (1, 1, L, capacity) bool."""
        return (self._places <= positions[:, None])[None, None]

    def go_back(self, num_tokens: int) -> None:
        """Forget the last tokens."""
        self.length -= num_tokens
        self._next -= num_tokens

    def select(self, rows: Tensor) -> None:
        """Keep the rows of the given (R,) indices, in their order, repeats included."""
        for layer in self.layers:
            layer.select(rows)


class LanguageHead(nn.Module):
    """Predict the next token; the vocabulary projection is the word embedding of the decoder."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Map (..., W) hidden states and the (V, W) word embedding to (..., V) logits."""
        return linear(self.norm(functional.gelu(self.transform(hidden))), words, self.bias)
