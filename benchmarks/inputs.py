"""What the benchmarks run on: sizes, random models and inputs, and how long natural texts are."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip import config
from blip.batch import SpecialTokens
from blip.config import PRESETS, read_yaml
from blip.models.blip import Blip, Parts

# How many texts have how many BERT word pieces, [CLS] and [SEP] included: the captions of
# coco_karpathy_test, cut at 35; the 3,128 most frequent answers and the questions of VQA.
CAPTIONS = {
    8: 1, 9: 147, 10: 2732, 11: 4520, 12: 5073, 13: 4251, 14: 3056, 15: 1962, 16: 1224, 17: 722,
    18: 419, 19: 284, 20: 172, 21: 122, 22: 86, 23: 48, 24: 39, 25: 34, 26: 24, 27: 25, 28: 17,
    29: 4, 30: 10, 31: 6, 32: 6, 33: 4, 34: 5, 35: 17,
}  # fmt: skip
ANSWERS = {3: 1744, 4: 817, 5: 484, 6: 62, 7: 16, 8: 3, 9: 2}
QUESTIONS = {
    6: 231, 7: 941, 8: 2030, 9: 1753, 10: 1665, 11: 1100, 12: 554, 13: 327, 14: 181, 15: 101,
    16: 41, 17: 19, 18: 13, 19: 8, 20: 4, 21: 3, 22: 2, 23: 3, 26: 1,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A size of the models, which may be small; the numbers of tokens and texts are those of use.

    Attributes:
        name: What the command calls it.
        model: Of both stacks.
        num_pieces: Of the vocabulary.
        shrink: What sides of images are divided by, as patches are: the tokens stay.
        queue_size: Of pre-training.
        scatter: How far random weights scatter, so that a text depends on its image.
    """

    name: str
    model: config.Model
    num_pieces: int
    shrink: int
    queue_size: int
    scatter: float


def find_size(name: str) -> Size:
    """Give `base` (ViT-B/16 and BERT-base), `large` (ViT-L/16), or `tiny`."""
    preset = "large_129m" if name == "large" else "base_14m"
    model = config.Model.model_validate(read_yaml(PRESETS / f"{preset}.yaml")["model"])
    if name != "tiny":
        return Size(name, model, 30522, 1, 57600, 0.02)
    sections = {
        "vision": model.vision.model_copy(
            update={"patch_size": 2, "width": 32, "num_layers": 2, "num_heads": 2}
        ),
        "text": model.text.model_copy(
            update={"width": 32, "num_layers": 2, "num_heads": 2, "intermediate": 128}
        ),
        "embed_size": 16,
    }
    return Size(name, model.model_copy(update=sections), 398, 8, 256, 0.15)


def preset(section: str) -> Mapping[str, object]:
    """Give a section of the preset of the paper's base model."""
    found: Mapping[str, object] = read_yaml(PRESETS / "base_14m.yaml")[section]
    return found


def build_model(size: Size, parts: Parts, image_size: int, device: torch.device) -> Blip:
    """Build a model with random weights, in evaluation mode; `image_size` before shrinking."""
    torch.manual_seed(0)
    pieces = size.num_pieces
    low = min(pieces // 4, 100)  # [CLS] and [SEP] stand near 100 in BERT's vocabulary
    special = SpecialTokens(pad=0, cls=low + 1, sep=low + 2, dec=pieces, enc=pieces + 1)
    model = Blip(size.model, image_size // size.shrink, pieces + 2, special, parts).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=size.scatter)
    # The counter of FLOPs hangs hooks on whatever could have a gradient.
    return model.requires_grad_(parts == "pretrain").to(device)


def draw_images(model: Blip, count: int) -> Tensor:
    """Draw (count, 3, S, S) normalised noise."""
    device = model.vision.cls_token.device
    return torch.randn(count, 3, model.image_size, model.image_size).to(device)


def draw_texts(
    model: Blip, count: int, lengths: Mapping[int, int], padded: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draw `[CLS] ... [SEP]` of random pieces and natural lengths.

    Args:
        model: Whose vocabulary is drawn from.
        count: T.
        lengths: How many natural texts have how many tokens.
        padded: The length to pad to; `None` takes that of the longest. Longer ones are cut.

    Returns:
        Token ids (T, L) and mask (T, L).
    """
    special = model.special
    weights = torch.tensor(list(lengths.values())).double()
    drawn = torch.tensor(list(lengths))[torch.multinomial(weights, count, replacement=True)]
    drawn = drawn.clamp(max=padded or max(lengths))
    places = torch.arange(padded or int(drawn.max()))
    ids = torch.randint(special.sep + 1, special.dec, (count, len(places)))
    ids[:, 0] = special.cls
    ids[torch.arange(count), drawn - 1] = special.sep
    mask = (places < drawn[:, None]).long()
    device = model.vision.cls_token.device
    return ids.masked_fill(mask == 0, special.pad).to(device), mask.to(device)


def cut(token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pad (T, L) texts to the longest of them only."""
    longest = int(mask.sum(dim=1).max())
    return token_ids[:, :longest], mask[:, :longest]


def draw_photos(count: int) -> list[bytes]:
    """Draw JPEGs of 500 x 375 pixels with the detail, and so about the bytes, of photos."""
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(count):
        picture = np.zeros((375, 500, 3))
        for cells, strength in ((4, 60.0), (16, 35.0), (64, 20.0), (250, 10.0)):
            noise = rng.uniform(-strength, strength, (max(cells * 3 // 4, 1), cells, 3))
            for channel in range(3):
                layer = Image.fromarray(noise[..., channel].astype(np.float32))
                picture[..., channel] += np.asarray(
                    layer.resize((500, 375), Image.Resampling.BICUBIC)
                )
        pixels = np.clip(picture + 128, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        photos.append(file.getvalue())
    return photos
