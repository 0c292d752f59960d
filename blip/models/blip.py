"""BLIP: image encoder, text stacks, heads, as a task needs them (Li et al. 2022, section 3.1)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip import config
from blip.batch import SpecialTokens
from blip.models.linear import Linear
from blip.models.med import LanguageHead, Memory, TextCache, TextTransformer
from blip.models.prefixes import Prefixes
from blip.models.vit import VisionTransformer

Parts = Literal[
    "pretrain", "captioning", "retrieval", "matching", "vqa", "nlvr", "features"
]  # what a task needs of the model

TEMPERATURE = 0.07


class Blip(nn.Module):
    """A BLIP model.

    All parts have the image encoder. Beside it,
    - `captioning` has the text decoder, which reads an image;
    - `features` the text encoder; `matching` also the projections and the matching head;
      `retrieval` also the temperature, with which it is trained;
    - `pretrain` has `captioning` and `retrieval`, which then share everything of the two text
      stacks but self-attention (BLIP.md 1.4);
    - `vqa` has a text encoder that reads an image with the question, and a text decoder that reads
      the states of the question; they share nothing (BLIP.md 5.3);
    - `nlvr` has a text encoder that reads two images, and a classifier (BLIP.md 5.4).

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
    classifier: "Classifier"

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
            self.text_encoder = TextTransformer(
                config.text, vocab_size, config.vision.width, paired=parts == "nlvr"
            )
        if parts in ("pretrain", "retrieval", "matching"):
            self._build_heads()
        if parts in ("pretrain", "captioning", "vqa"):
            self._build_decoder()
        if parts == "nlvr":
            self.classifier = Classifier(config.text.width)
        # On the meta device there is nothing to draw, and trying costs seconds of torch's imports.
        if not self.vision.cls_token.is_meta:
            self._initialise()

    def _build_heads(self) -> None:
        vision, text = self.config.vision, self.config.text
        self.image_projection = Linear(vision.width, self.config.embed_size)
        self.text_projection = Linear(text.width, self.config.embed_size)
        self.match_head = Linear(text.width, 2)
        if self.parts != "matching":
            self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))

    def _build_decoder(self) -> None:
        text = self.config.text
        self.text_decoder = TextTransformer(
            text,
            self.vocab_size,
            text.width if self.parts == "vqa" else self.config.vision.width,
            share=self.text_encoder if self.parts == "pretrain" else None,
        )
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

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode (B, F, 3, S, S), the two images of a statement or the frames of a video.

        Returns:
            (B, F * N, D) tokens, those of an image together.
        """
        return self.vision(images.flatten(0, 1)).reshape(len(images), -1, self.config.vision.width)

    def embed_image(self, image_tokens: Tensor, num_frames: int = 1) -> Tensor:
        """Give the (B, E) unit vectors of images, of which only the CLS tokens are read.

        Args:
            image_tokens: (B, N, D) from `encode_image`; or (B, F * N, D) from `encode_images`, the
                frames of a video, whose projections are averaged (BLIP.md 5.6).
            num_frames: F.
        """
        cls = image_tokens.reshape(len(image_tokens), num_frames, -1, image_tokens.shape[-1])[
            :, :, 0
        ]
        return functional.normalize(self.image_projection(cls).float().mean(dim=1), dim=-1)

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
        return functional.normalize(self.text_projection(hidden[:, 0]).float(), dim=-1)

    def project_images(self, image_tokens: Tensor, num_readers: int | None = None) -> Memory:
        """Make a memory of (B, N, D) image tokens, for at most `num_readers` text tokens each.

        It serves `encode_pairs`, `match`, `classify`; and `decode`, unless the parts are `vqa`: in
        `pretrain`, encoder and decoder share it.
        """
        stack = self.text_decoder if self.parts == "captioning" else self.text_encoder
        return stack.project(image_tokens, num_readers=num_readers)

    def project_captioned(self, image_tokens: Tensor, states: Tensor, mask: Tensor) -> Memory:
        """Make a memory of images and what was said of each, for `match` (VisDial, BLIP.md 5.5).

        Args:
            image_tokens: (B, N, D).
            states: (B, L, D) of the texts alone, from `encode_text`.
            mask: (B, L), nonzero at tokens.
        """
        seen = mask.new_ones(image_tokens.shape[:2])
        both = torch.cat([image_tokens, states.to(image_tokens.dtype)], dim=1)
        return self.text_encoder.project(both, torch.cat([seen, mask], dim=1))

    def project_questions(self, states: Tensor, mask: Tensor) -> Memory:
        """Make the memory that the decoder of `vqa` reads.

        Args:
            states: (B, L, W) of questions with their images, from `encode_pairs`.
            mask: (B, L), nonzero at tokens. The reference forgets it when it generates, so that an
                answer there may depend on the other questions of the batch (BLIP.md 5.3).
        """
        return self.text_decoder.project(states, mask)

    def encode_pairs(
        self,
        token_ids: Tensor,
        mask: Tensor,
        memory: Memory,
        image_index: Tensor | None = None,
        pooled: bool = False,
    ) -> Tensor:
        """Encode texts grounded in images.

        Args:
            token_ids: (P, L) `[CLS] ... [SEP]` and padding; position 0 is read as `[ENC]`.
            mask: (P, L), nonzero at tokens.
            memory: `project_images` of B images.
            image_index: (P,) int64, the image of each text; `None` where P is a multiple of B and
                the texts of an image stand together.
            pooled: Only position 0 of the last layer is wanted, as by `match`.

        Returns:
            (P, L, W), or (P, 1, W) if `pooled`.
        """
        token_ids = self._start(token_ids, self.special.enc)
        return self.text_encoder(token_ids, mask, memory, image_index, pooled=pooled)

    def match(
        self,
        token_ids: Tensor,
        mask: Tensor,
        memory: Memory,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Judge pairs, with the arguments of `encode_pairs`: (P, 2) logits, index 1 for a match."""
        hidden = self.encode_pairs(token_ids, mask, memory, image_index, pooled=True)
        return self.match_head(hidden[:, 0])

    def classify(
        self,
        token_ids: Tensor,
        mask: Tensor,
        memory: Memory,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Judge statements about two images (NLVR2), with the arguments of `encode_pairs`.

        Returns:
            (P, 2) logits, index 1 for true.
        """
        hidden = self.encode_pairs(token_ids, mask, memory, image_index, pooled=True)
        return self.classifier(hidden[:, 0])

    def decode(
        self,
        token_ids: Tensor,
        memory: Memory,
        memory_index: Tensor | None = None,
        cache: TextCache | None = None,
    ) -> Tensor:
        """Run the decoder; `predict` turns its states into logits.

        Padding must stand on the right, where no counted token sees it.

        Args:
            token_ids: (P, L) `[CLS] ...`; position 0 of a text is read as `[DEC]`.
            memory: `project_images` of B images, or `project_questions` of B questions.
            memory_index: (P,) int64, the memory of each text; `None` where P is a multiple of B
                and the texts of a memory stand together.
            cache: Of the tokens before these; the ids are then a continuation.

        Returns:
            (P, L, W) hidden states.
        """
        if cache is None or cache.length == 0:
            token_ids = self._start(token_ids, self.special.dec)
        return self.text_decoder(token_ids, None, memory, memory_index, causal=True, cache=cache)

    def decode_prefixes(self, prefixes: Prefixes, memory: Memory) -> Tensor:
        """Run the decoder on the M prefixes of some texts (`find_prefixes`): (M, W) states."""
        return self.text_decoder.read_prefixes(prefixes, memory)

    def predict(self, hidden: Tensor) -> Tensor:
        """Give next-token logits (..., V) of decoder states (..., W)."""
        return self.language_head(hidden, self.text_decoder.embeddings.words.weight)

    @staticmethod
    def _start(token_ids: Tensor, token: int) -> Tensor:
        start = token_ids.new_full((len(token_ids), 1), token)
        return torch.cat([start, token_ids[:, 1:]], dim=1)


class Classifier(nn.Module):
    """True or false, of the pooled state of a statement (BLIP.md 5.4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = Linear(width, width)
        self.output = Linear(width, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map (B, W) to (B, 2) logits."""
        return self.output(functional.relu(self.hidden(pooled)))
