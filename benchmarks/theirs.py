"""The same models in `transformers`, and its way along our paths."""

import importlib
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import plain
from blip import config
from blip.models.blip import Blip
from blip.models.checkpoint import write_checkpoint
from blip.models.salesforce import Checkpoint

CLASSES = {
    "captioning": "BlipForConditionalGeneration",
    "matching": "BlipForImageTextRetrieval",
}


def load(model: Blip) -> Any:
    """Convert a model and let transformers load it."""
    transformers = importlib.import_module("transformers")  # takes seconds, and has no types
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device, special = model.vision.cls_token.device, model.special
    pieces = [f"word{number}" for number in range(special.dec)]
    for name in ("pad", "cls", "sep"):
        pieces[getattr(special, name)] = f"[{name.upper()}]"
    pieces[1] = "[UNK]"
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(pieces) + "\n", encoding="utf-8")
        write_checkpoint(
            Checkpoint(model.cpu(), vocabulary), Path(folder) / "theirs", "huggingface"
        )
        kind = getattr(transformers, CLASSES[model.parts])
        loaded = kind.from_pretrained(Path(folder) / "theirs").eval()
    model.to(device)
    return loaded.to(device)


def match(theirs: Any, token_ids: Tensor, mask: Tensor, image_tokens: Tensor) -> Tensor:
    """Judge P texts, `[ENC]` first, with (P, N, D) image tokens: (P, 2) logits."""
    hidden = theirs.text_encoder(
        token_ids,
        attention_mask=mask,
        encoder_hidden_states=image_tokens,
        encoder_attention_mask=torch.ones(image_tokens.shape[:2], device=mask.device),
    ).last_hidden_state
    logits: Tensor = theirs.itm_head(hidden[:, 0])
    return logits


def write(
    theirs: Any,
    image_tokens: Tensor,
    prompt: Tensor,
    decoding: config.Decoding,
    sep: int,
    draws: Tensor | None = None,
) -> Tensor:
    """Write captions of `max_length` tokens: (B, max_length - T) ids.

    Args:
        theirs: `BlipForConditionalGeneration`.
        image_tokens: (B, N, D).
        prompt: (1, T), `[DEC]` first.
        decoding: Method and length.
        sep: The token that ends a caption.
        draws: (B, max_length - T), the choices of sampling; the same that ours are given.
    """
    steps = iter(() if draws is None else draws.T)

    def choose(probabilities: Tensor, num_samples: int) -> Tensor:
        assert num_samples == 1
        kept, ids = probabilities.topk(min(decoding.top_k, probabilities.shape[1]), dim=1)
        return plain.pick(kept, ids, next(steps))

    settings: dict[str, Any] = {"num_beams": decoding.num_beams}
    if decoding.method == "nucleus":
        settings = {"do_sample": True, "top_k": decoding.top_k, "top_p": decoding.top_p}
    with mock.patch("torch.multinomial", choose):
        rows: Tensor = theirs.text_decoder.generate(
            input_ids=prompt.repeat(len(image_tokens), 1),
            encoder_hidden_states=image_tokens,
            encoder_attention_mask=torch.ones(image_tokens.shape[:2], device=prompt.device),
            repetition_penalty=decoding.repetition_penalty,
            min_length=decoding.min_length,
            max_length=decoding.max_length,
            eos_token_id=sep,
            pad_token_id=0,
            **settings,
        )
    return rows[:, prompt.shape[1] :]
