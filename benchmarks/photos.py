"""JPEGs to training images: ours, and by Pillow and torchvision."""

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]
from torchvision.transforms import functional as tv

from blip.config import Augmentation
from blip.data.images import decode_image
from blip.data.transforms import (
    ANGLE,
    GREY,
    LEVEL,
    MEAN,
    SHEAR,
    SHIFT,
    STD,
    TrainTransform,
    draw_crop,
    draw_operations,
    normalise,
)

Generators = Sequence[np.random.Generator]
Reader = Callable[[Sequence[bytes], Augmentation, Generators], Tensor]

SIDE = 224
MAX_PIXELS = 2**24


def read_ours(files: Sequence[bytes], augmentation: Augmentation, rngs: Generators) -> Tensor:
    """Decode and augment, and normalise the batch, as pre-training does: (B, 3, S, S)."""
    transform = TrainTransform(augmentation, SIDE)
    images = [
        transform(decode_image(file, MAX_PIXELS), rng)
        for file, rng in zip(files, rngs, strict=True)
    ]
    return normalise(torch.stack(images))


def read_torchvision(
    files: Sequence[bytes], augmentation: Augmentation, rngs: Generators
) -> Tensor:
    """Do the same with Pillow and torchvision, image by image, by the same draws."""
    return torch.stack(
        [_read_torchvision(file, augmentation, rng) for file, rng in zip(files, rngs, strict=True)]
    )


def mean_levels(ours: Tensor, theirs: Tensor) -> float:
    """Give the mean difference of normalised images, in 255ths of the range of a colour."""
    deviation = torch.tensor(STD).view(3, 1, 1)
    return ((ours - theirs) * deviation).abs().mean().item() * 255


def _read_torchvision(file: bytes, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    """Read one image: (3, S, S). Its first version of transforms, faster on Pillow's images."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    box = draw_crop(image.height, image.width, augmentation.crop_scale, rng)
    image = tv.resized_crop(image, *box, [SIDE, SIDE], InterpolationMode.BICUBIC)
    if rng.random() < augmentation.flip:
        image = tv.hflip(image)
    if augmentation.randaugment:
        for operation, sign in draw_operations(rng):
            image = _apply(image, operation, sign * LEVEL / 10)
    return tv.normalize(tv.to_tensor(image), list(MEAN), list(STD))


def _apply(image: Image.Image, operation: str, share: float) -> Image.Image:
    """Apply an operation by torchvision; brightness and sharpness change nothing at level 5."""
    match operation:
        case "auto_contrast":
            return tv.autocontrast(image)
        case "equalize":
            return tv.equalize(image)
        case "shear_x":
            return _warp(image, shear=[math.degrees(math.atan(share * SHEAR)), 0.0])
        case "shear_y":
            return _warp(image, shear=[0.0, math.degrees(math.atan(share * SHEAR))])
        case "translate_x":
            return _warp(image, translate=[round(share * SHIFT), 0])
        case "translate_y":
            return _warp(image, translate=[0, round(share * SHIFT)])
        case "rotate":
            return _warp(image, angle=share * ANGLE)
        case _:
            return image


def _warp(
    image: Image.Image,
    angle: float = 0.0,
    translate: list[int] | None = None,
    shear: list[float] | None = None,
) -> Image.Image:
    warped: Image.Image = tv.affine(
        image,
        angle,
        translate or [0, 0],
        1.0,
        shear or [0.0, 0.0],
        InterpolationMode.BILINEAR,
        [float(GREY)] * 3,
    )
    return warped
