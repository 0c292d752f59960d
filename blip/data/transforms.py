"""Images as the model reads them: resized, augmented, normalised (BLIP.md 2.3).

Images are uint8 tensors (3, H, W), RGB, until the batch is normalised: a quarter of the bytes to
move between processes and to the device. Resizing is torch's antialiased bicubic, which follows
Pillow's at a third of its cost (a value in 200 differs by one; measured worst case: two).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from blip.config import Augmentation

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

RATIO = (3 / 4, 4 / 3)  # of a random crop, width to height
GREY = 128  # what moves in from outside the image

NUM_OPERATIONS = 2  # RandAugment's N
PROBABILITY = 0.5  # that a drawn operation is applied
SHEAR = 0.15  # magnitude 5 of 10
SHIFT = 5  # pixels, whatever the size
ANGLE = 15.0  # degrees
# Brightness and Sharpness at magnitude 5 have the factor 1 and so change nothing (BLIP.md 2.3).
OPERATIONS = (
    "identity",
    "auto_contrast",
    "brightness",
    "sharpness",
    "equalize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)


def evaluation_transform(image: Tensor, size: int) -> Tensor:
    """Resize (3, H, W) uint8 to a square, aspect not kept, and normalise: (3, S, S) float32."""
    return normalise(resize(image, size))


def normalise(images: Tensor) -> Tensor:
    """Bring uint8 images (..., 3, S, S) to float32 with the mean and deviation that CLIP uses."""
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    return images.float().div_(255.0).sub_(mean).div_(std)


def resize(image: Tensor, size: int) -> Tensor:
    """Resize (3, H, W) uint8 to (3, S, S), bicubic with antialiasing."""
    if image.shape[1:] == (size, size):
        return image
    return interpolate(image[None], size=(size, size), mode="bicubic", antialias=True)[0]


class TrainTransform:
    """Random crop, resize, flip and RandAugment of one image.

    `crop_scale` (1, 1) means no crop: the whole image is resized, as in evaluation.
    """

    def __init__(self, augmentation: Augmentation, size: int) -> None:
        self.augmentation = augmentation
        self.size = size

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Give (3, S, S) uint8 of an image (3, H, W) uint8; all chance comes from `rng`."""
        config = self.augmentation
        if config.crop_scale != (1.0, 1.0):
            top, left, height, width = draw_crop(
                image.shape[1], image.shape[2], config.crop_scale, rng
            )
            image = image[:, top : top + height, left : left + width]
        image = resize(image, self.size)
        if config.flip and rng.random() < config.flip:
            image = image.flip(2)
        if config.randaugment:
            for operation, sign in draw_operations(rng):
                image = apply_operation(image, operation, sign)
        return image


def draw_crop(
    height: int, width: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop of a share `scale` of the area, its ratio log-uniform in `RATIO`.

    Returns:
        Top, left, height and width; the largest central crop of an allowed ratio where ten draws
        do not fit.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_operations(rng: np.random.Generator) -> list[tuple[str, int]]:
    """Draw RandAugment's operations, with replacement, those that are to be applied, and a sign."""
    drawn = [OPERATIONS[i] for i in rng.integers(len(OPERATIONS), size=NUM_OPERATIONS)]
    return [
        (operation, 1 if rng.random() < 0.5 else -1)
        for operation in drawn
        if rng.random() < PROBABILITY
    ]


def apply_operation(image: Tensor, operation: str, sign: int) -> Tensor:
    """Apply one RandAugment operation at magnitude 5 to (3, H, W) uint8.

    A positive sign moves content to the right or down, shears along with the other axis, and turns
    counter-clockwise.

    The reference whitens a channel without black in AutoContrast (its minimum is negated as an
    unsigned byte and overflows); here AutoContrast is Pillow's, which the reference means to be.
    """
    match operation:
        case "auto_contrast":
            return _look_up(image, _contrast_table)
        case "equalize":
            return _look_up(image, _equalize_table)
        case "shear_x":
            return _warp(image, ((1.0, -sign * SHEAR, 0.0), (0.0, 1.0, 0.0)))
        case "shear_y":
            return _warp(image, ((1.0, 0.0, 0.0), (-sign * SHEAR, 1.0, 0.0)))
        case "translate_x":
            return _shift(image, sign * SHIFT, 2)
        case "translate_y":
            return _shift(image, sign * SHIFT, 1)
        case "rotate":
            return _warp(image, _rotation(image, math.radians(sign * ANGLE)))
        case "identity" | "brightness" | "sharpness":
            return image
        case _:
            raise ValueError(f"no operation {operation!r}: one of {', '.join(OPERATIONS)}")


def _rotation(image: Tensor, angle: float) -> tuple[tuple[float, ...], ...]:
    """Where each pixel of an image turned about (W/2, H/2) comes from."""
    x, y = image.shape[2] / 2, image.shape[1] / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y)


def _warp(image: Tensor, source: tuple[tuple[float, ...], ...]) -> Tensor:
    """Sample bilinearly at `source` (2 x 3: pixel of the result -> place in the image)."""
    height, width = image.shape[1:]
    x = torch.arange(width, dtype=torch.float32)
    y = torch.arange(height, dtype=torch.float32)[:, None]
    places = [a * x + b * y + c for a, b, c in source]
    grid = torch.stack(
        [p * (2 / (n - 1)) - 1 for p, n in zip(places, (width, height), strict=True)], -1
    )
    moved = grid_sample(image[None].float() - GREY, grid[None], align_corners=True)[0]
    return (moved + GREY).round().clamp_(0, 255).to(torch.uint8)


def _shift(image: Tensor, pixels: int, axis: int) -> Tensor:
    """Move by whole pixels along an axis; grey moves in."""
    shifted = torch.full_like(image, GREY)
    kept = max(image.shape[axis] - abs(pixels), 0)
    source, target = (0, abs(pixels)) if pixels > 0 else (abs(pixels), 0)
    shifted.narrow(axis, target if kept else 0, kept).copy_(
        image.narrow(axis, source if kept else 0, kept)
    )
    return shifted


def _look_up(image: Tensor, table: Callable[[NDArray[np.intp]], NDArray[np.uint8]]) -> Tensor:
    """Map every channel through the table that its histogram gives."""
    pixels = image.numpy()
    channels = [table(np.bincount(c.ravel(), minlength=256))[c] for c in pixels]
    return torch.from_numpy(np.stack(channels))


def _contrast_table(histogram: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Stretch from the darkest and lightest value to 0 and 255."""
    used = np.flatnonzero(histogram)
    low, high = int(used[0]), int(used[-1])
    if high <= low:
        return np.arange(256, dtype=np.uint8)
    scale = 255.0 / (high - low)
    return np.clip(np.arange(256) * scale - low * scale, 0, 255).astype(np.uint8)


def _equalize_table(histogram: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Flatten the histogram, by Pillow's integer rule."""
    used = histogram[histogram > 0]
    step = (int(used.sum()) - int(used[-1])) // 255
    if len(used) <= 1 or not step:
        return np.arange(256, dtype=np.uint8)
    below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
    return np.minimum((step // 2 + below) // step, 255).astype(np.uint8)
