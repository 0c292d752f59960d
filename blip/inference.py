"""A model put to use: captions, answers, matches and features of any images."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from blip.config import Decoding
from blip.data.text import Tokenizer, clean_caption, clean_question
from blip.data.transforms import normalise
from blip.errors import ConfigError, DataError
from blip.evaluate.network import Need, open_network
from blip.evaluate.vqa import (
    ANSWER,
    QUESTION_TOKENS,
    QUESTION_WORDS,
    encode_questions,
    rank_answers,
)
from blip.models.blip import Blip
from blip.models.generation import generate
from blip.models.gradcam import grad_cam
from blip.models.matching import Texts, embed_texts, match_texts
from blip.models.vit import resize_position_embedding

T = TypeVar("T")

# BLIP.md 1.1.
CAPTION_WORDS, CAPTION_TOKENS = 30, 35

PAIRS = 256  # of an image and a text, matched at once


class Matches(NamedTuple):
    """How P pairs of an image and a text fit.

    Attributes:
        probability: (P,) of a match, by the matching head.
        cosine: (P,) of the embeddings.
    """

    probability: Tensor
    cosine: Tensor


class Heatmap(NamedTuple):
    """Where a model looks to match a text (BLIP.md 7).

    Attributes:
        mean: (P, P) over the word pieces, for P x P patches.
        words: The words.
        per_word: (P, P) of each, the mean over its pieces.
    """

    mean: Tensor
    words: list[str]
    per_word: list[Tensor]


@dataclass(frozen=True)
class Predictor:
    """A model in evaluation mode, on the device to use, with its tokenizer.

    Images are (B, 3, S, S) uint8 (`evaluation_resize`), S the model's `image_size`.
    An answer about an image does not depend on the others of its batch, but for rounding.
    """

    model: Blip
    tokenizer: Tokenizer

    @torch.inference_mode()
    def caption(
        self,
        images: Tensor,
        prompt: str,
        decoding: Decoding,
        draws: Sequence[torch.Generator] | None = None,
    ) -> list[str]:
        """Write a caption for each image.

        Args:
            images: B images.
            prompt: What every caption begins with; it is not given back.
            decoding: How.
            draws: For nucleus sampling, the chance of each image.

        Raises:
            ConfigError: The prompt or `max_length` is too long.
        """
        memory = self.model.project_images(self._encode(images), decoding.num_readers)
        with _user_errors():
            written = generate(self.model, memory, self.tokenizer.prompt(prompt), decoding, draws)
        return [self.tokenizer.decode(ids) for ids in written]

    @torch.inference_mode()
    def answer(self, images: Tensor, questions: Texts) -> list[list[str]]:
        """Write an answer to every question about each image: B lists of Q."""
        memory = encode_questions(self.model, self._encode(images), _each(questions, len(images)))
        with _user_errors():
            written = generate(self.model, memory, self.tokenizer.prompt(""), ANSWER)
        return _rows([self.tokenizer.decode(ids) for ids in written], len(questions))

    @torch.inference_mode()
    def rank(self, images: Tensor, questions: Texts, answers: Texts, k: int) -> list[list[int]]:
        """Choose an answer to every question about each image: B lists of Q indices.

        Args:
            images: B images.
            questions: Q questions, from `questions`.
            answers: The candidates, from `answers`.
            k: How many of them, those with the likeliest first word piece, are scored in full.

        Raises:
            ConfigError: `k` is more than the number of candidates.
        """
        memory = encode_questions(self.model, self._encode(images), _each(questions, len(images)))
        with _user_errors():
            best: list[int] = rank_answers(self.model, memory, answers, k).best.tolist()
        return _rows(best, len(questions))

    @torch.inference_mode()
    def match(self, images: Tensor, texts: Texts, pairs: Tensor) -> Matches:
        """Judge pairs.

        Args:
            images: B images.
            texts: T texts, from `captions`.
            pairs: (P, 2) int64, image and text of each.
        """
        tokens = self._encode(images)
        image_index, text_index = pairs.unbind(1)
        memory = self.model.project_images(tokens)
        logits = match_texts(self.model, texts, text_index, memory, image_index, PAIRS)
        text_embed = embed_texts(self.model, texts, PAIRS)
        cosine = self.model.embed_image(tokens) @ text_embed.T
        chosen = cosine[image_index.to(cosine.device), text_index.to(cosine.device)]
        return Matches(logits.softmax(dim=1)[:, 1].cpu(), chosen.cpu())

    def heatmap(self, image: Tensor, text: str, layer: int) -> Heatmap:
        """Show where in an image (3, S, S) the model looks to match a text, by Grad-CAM.

        Raises:
            ConfigError: The text encoder has no such layer.
        """
        texts = self.captions([text])
        device = self.model.match_head.weight.device
        ids, mask = texts.token_ids.to(device), texts.mask.to(device)
        with _user_errors():
            seen = grad_cam(self.model, normalise(image[None].to(device)), ids, mask, layer)
        words: list[str] = []
        maps: list[list[Tensor]] = []
        pieces = zip(texts.token_ids[0].tolist(), seen.per_token[0].cpu(), strict=True)
        for token, piece_map in list(pieces)[1:-1]:
            piece = self.tokenizer.decode([token])
            if piece.startswith("##") and words:
                words[-1] += piece.removeprefix("##")
                maps[-1].append(piece_map)
            else:
                words.append(piece)
                maps.append([piece_map])
        per_word = [torch.stack(each).mean(dim=0) for each in maps]
        return Heatmap(seen.mean[0].cpu(), words, per_word)

    @torch.inference_mode()
    def image_features(self, images: Tensor, texts: Texts | None = None) -> dict[str, Tensor]:
        """Give the features of images, and of them with texts, as the reference's extractor does.

        Returns:
            `image_cls` (B, D), the first token of the image encoder; `image_embed` (B, E), its unit
            vector beside those of texts, if the model has one; and with texts, `multimodal_cls`
            (B, T, W), the first token of each text read with each image.
        """
        tokens = self._encode(images)
        found = {"image_cls": tokens[:, 0]}
        if hasattr(self.model, "image_projection"):
            found["image_embed"] = self.model.embed_image(tokens)
        if texts is not None:
            every = _each(texts, len(images))
            ids, mask = every.token_ids.to(tokens.device), every.mask.to(tokens.device)
            memory = self.model.project_images(tokens, ids.numel() // len(images))
            pooled = self.model.encode_pairs(ids, mask, memory, pooled=True)
            found["multimodal_cls"] = pooled.view(len(images), len(texts), -1)
        return {name: tensor.cpu() for name, tensor in found.items()}

    @torch.inference_mode()
    def text_features(self, texts: Texts) -> dict[str, Tensor]:
        """Give the features of texts alone.

        Returns:
            `text_cls` (T, W), the first token of the text encoder; `text_embed` (T, E), its unit
            vector beside those of images, if the model has one.
        """
        device = self.model.text_encoder.embeddings.words.weight.device
        hidden = self.model.encode_text(
            texts.token_ids.to(device), texts.mask.to(device), pooled=True
        )
        found = {"text_cls": hidden[:, 0]}
        if hasattr(self.model, "text_projection"):
            found["text_embed"] = self.model.embed_text(hidden)
        return {name: tensor.cpu() for name, tensor in found.items()}

    def captions(
        self, texts: Sequence[str], max_words: int = CAPTION_WORDS, max_tokens: int = CAPTION_TOKENS
    ) -> Texts:
        """Clean and tokenise texts that are to be matched.

        Raises:
            DataError: Cleaning leaves nothing of one.
        """
        return self._tokenise(texts, [clean_caption(text, max_words) for text in texts], max_tokens)

    def questions(self, texts: Sequence[str]) -> Texts:
        """Clean and tokenise questions, as `captions` does texts."""
        cleaned = [clean_question(text, QUESTION_WORDS) for text in texts]
        return self._tokenise(texts, cleaned, QUESTION_TOKENS)

    def whole_texts(self, texts: Sequence[str]) -> Texts:
        """Tokenise texts as they are, answers or those of which features are wanted.

        Raises:
            DataError: One is empty, or longer than the model can read.
        """
        return self._tokenise(texts, texts, sys.maxsize)

    def _tokenise(self, texts: Sequence[str], cleaned: Sequence[str], max_tokens: int) -> Texts:
        for text, rest in zip(texts, cleaned, strict=True):
            if not rest.strip():
                raise DataError(f"text {text!r}: holds no word: give one that says something")
        found = Texts(*self.tokenizer.encode(cleaned, max_tokens))
        positions = self.model.config.text.max_positions
        lengths = found.mask.sum(dim=1)
        if lengths.max() > positions:
            text = texts[int(lengths.argmax())]
            raise DataError(
                f"text {text[:40]!r}...: has {int(lengths.max())} tokens, and the model reads "
                f"{positions}: shorten it"
            )
        return found

    def _encode(self, images: Tensor) -> Tensor:
        return self.model.encode_image(normalise(images.to(self.model.vision.cls_token.device)))


def load_predictor(
    path: Path, need: Need, vocabulary: str | None = None, image_size: int | None = None
) -> Predictor:
    """Read a checkpoint of any kind for use, on the GPU where there is one.

    Args:
        path: See `read_checkpoint`.
        need: What it is to do.
        vocabulary: See `read_checkpoint`.
        image_size: Side of the images; the position embedding is resampled to it. `None` takes that
            of its training.

    Raises:
        CheckpointError: It cannot be read, or was made for something else.
        ConfigError: There is no such vocabulary, or the image size is not of whole patches.
    """
    model, tokenizer, _ = open_network(path, need, torch.get_num_threads(), vocabulary)
    if image_size is not None:
        _resample(model, image_size)
    model.vision.requires_grad_(False)  # Grad-CAM then keeps nothing of the image encoder
    return Predictor(model, tokenizer)


def _resample(model: Blip, image_size: int) -> None:
    patch_size = model.config.vision.patch_size
    if image_size <= 0 or image_size % patch_size:
        raise ConfigError(
            f"image size {image_size}: must be a multiple of the model's patches of {patch_size}"
        )
    num_tokens = 1 + (image_size // patch_size) ** 2
    vision = model.vision
    resized = resize_position_embedding(vision.position_embedding.detach(), num_tokens)
    vision.position_embedding = nn.Parameter(resized)
    model.image_size = vision.image_size = image_size


def _each(texts: Texts, times: int) -> Texts:
    """Repeat texts for each image; those of an image stand together."""
    return Texts(texts.token_ids.repeat(times, 1), texts.mask.repeat(times, 1))


def _rows(items: list[T], width: int) -> list[list[T]]:
    return [items[start : start + width] for start in range(0, len(items), width)]


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Settings that do not fit this model are the user's to mend."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from None
