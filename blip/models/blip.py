"""BLIP: image encoder, text stacks, heads, as a task needs them (Li et al. 2022, section 3.1)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip import config
from blip.batch import SpecialTokens
from blip.models.med import LanguageHead, TextCache, TextTransformer
from blip.models.vit import VisionTransformer

Parts = Literal["pretrain", "captioning", "retrieval"]

TEMPERATURE = 0.07


class Blip(nn.Module):
    """A BLIP model.

    `captioning` has the text decoder; `retrieval` the text encoder, the projections and the
    matching head; `pretrain` both, which then share everything but self-attention (BLIP.md 1.4).

    Args:
        config: Sizes.
        image_size: Side of the images, in pixels.
        vocab_size: Token ids, special tokens included.
        special: Ids of the special tokens.
        parts: What to build.
    """

    text_encoder: TextTransformer
    image_projection: nn.Linear
    text_projection: nn.Linear
    match_head: nn.Linear
    temperature: nn.Parameter
    text_decoder: TextTransformer
    language_head: LanguageHead

    def __init__(
        self,
        config: config.Model,
        image_size: int,
        vocab_size: int,
        special: SpecialTokens,
        parts: Parts,
    ) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.vocab_size = vocab_size
        self.special = special
        self.parts: Parts = parts
        self.vision = VisionTransformer(config.vision, image_size)
        if parts != "captioning":
            self._build_encoder()
        if parts != "retrieval":
            self._build_decoder(self.text_encoder if parts == "pretrain" else None)
        # On the meta device there is nothing to draw, and trying costs seconds of torch's imports.
        if not self.vision.cls_token.is_meta:
            self._initialise()

    def _build_encoder(self) -> None:
        vision, text = self.config.vision, self.config.text
        self.text_encoder = TextTransformer(text, self.vocab_size, vision.width)
        self.image_projection = nn.Linear(vision.width, self.config.embed_size)
        self.text_projection = nn.Linear(text.width, self.config.embed_size)
        self.match_head = nn.Linear(text.width, 2)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))

    def _build_decoder(self, share: TextTransformer | None) -> None:
        vision, text = self.config.vision, self.config.text
        self.text_decoder = TextTransformer(text, self.vocab_size, vision.width, share)
        self.language_head = LanguageHead(text.width, self.vocab_size)

    def _initialise(self) -> None:
        for child in self.children():
            if isinstance(child, VisionTransformer):
                child.initialise(self.config.init_std)
                continue
            for module in child.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=self.config.init_std)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode (B, 3, S, S) images as (B, N, D) tokens, CLS first."""
        return self.vision(images)

    def embed_image(self, image_tokens: Tensor) -> Tensor:
        """Give the (B, E) unit vectors of images from their (B, N, D) tokens (only CLS is read)."""
        return functional.normalize(self.image_projection(image_tokens[:, 0]), dim=-1)

    def encode_text(self, token_ids: Tensor, mask: Tensor, pooled: bool = False) -> Tensor:
        """Encode texts without an image.

        Args:
            token_ids: (B, L) `[CLS] ... [SEP]` and padding.
            mask: (B, L), nonzero at tokens.
            pooled: Only position 0 of the last layer is wanted, as by `embed_text`.

        Returns:
            (B, L, W), or (B, 1, W) if `pooled`.
        """
        return self.text_encoder(token_ids, mask, pooled=pooled)

    def embed_text(self, hidden: Tensor) -> Tensor:
        """Give the (B, E) unit vectors of texts from what `encode_text` gave."""
        return functional.normalize(self.text_projection(hidden[:, 0]), dim=-1)

    def project_images(self, image_tokens: Tensor) -> list[Tensor]:
        """Give cross-attention keys and values (B, N, 2W) of every layer for (B, N, D) tokens.

        They serve `encode_pairs`, `match` and `decode`: in `pretrain`, encoder and decoder share
        them.
        """
        stack = self.text_decoder if self.parts == "captioning" else self.text_encoder
        return stack.project_images(image_tokens)

    def encode_pairs(
        self,
        token_ids: Tensor,
        mask: Tensor,
        image_kv: list[Tensor],
        image_index: Tensor | None = None,
        pooled: bool = False,
    ) -> Tensor:
        """Encode texts grounded in images.

        Args:
            token_ids: (P, L) `[CLS] ... [SEP]` and padding; position 0 is read as `[ENC]`.
            mask: (P, L), nonzero at tokens.
            image_kv: `project_images` of B images.
            image_index: (P,) int64, the image of each text; `None` where P is a multiple of B and
                the texts of an image stand together.
            pooled: Only position 0 of the last layer is wanted, as by `match`.

        Returns:
            (P, L, W), or (P, 1, W) if `pooled`.
        """
        token_ids = self._start(token_ids, self.special.enc)
        return self.text_encoder(token_ids, mask, image_kv, image_index, pooled=pooled)

    def match(
        self,
        token_ids: Tensor,
        mask: Tensor,
        image_kv: list[Tensor],
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Judge pairs, with the arguments of `encode_pairs`: (P, 2) logits, index 1 for a match."""
        hidden = self.encode_pairs(token_ids, mask, image_kv, image_index, pooled=True)
        return self.match_head(hidden[:, 0])

    def decode(
        self,
        token_ids: Tensor,
        image_kv: list[Tensor],
        image_index: Tensor | None = None,
        cache: TextCache | None = None,
    ) -> Tensor:
        """Run the decoder; `predict` turns its states into logits.

        Padding must stand on the right, where no counted token sees it.

        Args:
            token_ids: (P, L) `[CLS] ...`; position 0 of a text is read as `[DEC]`.
            image_kv: `project_images` of B images.
            image_index: As in `encode_pairs`.
            cache: Of the tokens before these; the ids are then a continuation.

        Returns:
            (P, L, W) hidden states.
        """
        if cache is None or cache.length == 0:
            token_ids = self._start(token_ids, self.special.dec)
        return self.text_decoder(token_ids, None, image_kv, image_index, causal=True, cache=cache)

    def predict(self, hidden: Tensor) -> Tensor:
        """Give next-token logits (..., V) of decoder states (..., W)."""
        return self.language_head(hidden, self.text_decoder.embeddings.words.weight)

    @staticmethod
    def _start(token_ids: Tensor, token: int) -> Tensor:
        start = token_ids.new_full((len(token_ids), 1), token)
        return torch.cat([start, token_ids[:, 1:]], dim=1)
