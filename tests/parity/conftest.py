"""One model in two programs: ours with random weights, and transformers' of what we wrote of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blip import config
from blip.batch import SpecialTokens
from blip.models.blip import Blip, Parts
from blip.models.checkpoint import write_checkpoint
from blip.models.salesforce import Checkpoint

CLASSES = {
    "captioning": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "matching": "BlipForImageTextRetrieval",
}


@dataclass(frozen=True)
class Size:
    """Of both stacks; how far random weights scatter, so that a text depends on its image; and what
    the bias of [SEP] is raised by, so that some texts end before they must.
    """

    width: int
    num_layers: int
    num_heads: int
    image_size: int
    num_pieces: int
    positions: int
    scatter: float
    ending: float


SIZES = {
    "small": Size(64, 3, 4, 48, 98, 32, 0.15, 1.0),
    "base": Size(768, 12, 12, 224, 30522, 512, 0.02, 2.5),  # ViT-B and BERT-base
}


@dataclass(frozen=True)
class Pair:
    """The same model twice, both in evaluation mode, and inputs for them.

    Attributes:
        ours: Ours.
        theirs: Transformers'.
        images: (3, 3, S, S).
        token_ids: (3, 9), `[CLS] ... [SEP]`, the second and third padded.
        mask: (3, 9).
    """

    ours: Blip
    theirs: Any
    images: Tensor
    token_ids: Tensor
    mask: Tensor

    def starting_with(self, token: int) -> Tensor:
        """Give the token ids with another first token."""
        start = torch.full((len(self.token_ids), 1), token)
        return torch.cat([start, self.token_ids[:, 1:]], dim=1)


@pytest.fixture(params=["small", pytest.param("base", marks=pytest.mark.slow)])
def size(request: pytest.FixtureRequest) -> Size:
    return SIZES[request.param]


@pytest.fixture
def pair(size: Size, tmp_path: Path) -> Callable[[Parts], Pair]:
    """Build a model with certain parts, convert it, and load it with transformers."""

    def build(parts: Parts) -> Pair:
        import transformers

        torch.manual_seed(0)
        ours = _model(size, parts)
        vocabulary = tmp_path / "vocab.txt"
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces += [f"word{i}" for i in range(size.num_pieces - len(pieces))]
        vocabulary.write_text("\n".join(pieces) + "\n")
        write_checkpoint(Checkpoint(ours, vocabulary), tmp_path / "theirs", "huggingface")
        theirs = getattr(transformers, CLASSES[parts]).from_pretrained(tmp_path / "theirs")
        lengths = torch.tensor([9, 6, 4])
        token_ids = torch.randint(5, size.num_pieces, (3, 9))
        mask = (torch.arange(9) < lengths[:, None]).long()
        token_ids[:, 0] = ours.special.cls
        token_ids[torch.arange(3), lengths - 1] = ours.special.sep
        token_ids[mask == 0] = ours.special.pad
        images = torch.randn(3, 3, size.image_size, size.image_size)
        return Pair(ours, theirs.eval(), images, token_ids, mask)

    return build


def _model(size: Size, parts: Parts) -> Blip:
    sizes = config.Model(
        vision=config.Vision(
            patch_size=16,
            width=size.width,
            num_layers=size.num_layers,
            num_heads=size.num_heads,
            drop_path=0,
            checkpoint_layers=0,
        ),
        text=config.Text(
            width=size.width,
            num_layers=size.num_layers,
            num_heads=size.num_heads,
            intermediate=4 * size.width,
            max_positions=size.positions,
            dropout=0.1,
        ),
        embed_size=size.width // 3,
        init_std=0.02,
        vision_weights=None,
        text_weights=None,
    )
    special = SpecialTokens(pad=0, cls=2, sep=3, dec=size.num_pieces, enc=size.num_pieces + 1)
    model = Blip(sizes, size.image_size, size.num_pieces + 2, special, parts).eval()
    with torch.no_grad():  # biases and norms too, so that none can be forgotten unseen
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size.scatter)
        if parts in ("captioning", "vqa"):
            model.language_head.bias[special.sep] += size.ending
    return model
