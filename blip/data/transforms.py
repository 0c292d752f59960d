"""Images as the model reads them: resized, augmented, normalised (BLIP.md 2.3).

Images are uint8 tensors (3, H, W), RGB, until the batch is normalised: a quarter of the bytes to
move between processes and to the device. What evaluation reads is the reference's to the bit, and
so are RandAugment's operations, which it has from OpenCV. Only the crops of training are resized by
torch, which follows Pillow at a fifth of its cost: on average 0.03 of 255 levels away on photos
(the worst of 128 crops: 0.25), and 0.4 on pure noise.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from blip.config import Augmentation

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

RATIO = (3 / 4, 4 / 3)  # of a random crop, width to height
GREY = 128  # what moves in from outside the image

NUM_OPERATIONS = 2  # RandAugment's N
LEVEL = 5  # its M, of 10
PROBABILITY = 0.5  # that a drawn operation is applied
# At level 10; proportional below.
SHEAR = 0.3
SHIFT = 10  # pixels, whatever the size
ANGLE = 30.0  # degrees
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
SIGNED = OPERATIONS[5:]
UNMOVED = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)  # where x and y come from if nothing moves


def evaluation_transform(image: Tensor, size: int) -> Tensor:
    """Resize (3, H, W) uint8 to a square, aspect not kept, and normalise: (3, S, S) float32."""
    return normalise(evaluation_resize(image, size))


def normalise(images: Tensor) -> Tensor:
    """Bring uint8 images (..., 3, S, S) to float32 with the mean and deviation that CLIP uses."""
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    return images.float().div_(255.0).sub_(mean).div_(std)


def evaluation_resize(
    image: Tensor, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Tensor:
    """Resize (3, H, W) uint8 to (3, S, S) by Pillow, bicubic as the reference evaluates."""
    if image.shape[1:] == (size, size):
        return image.contiguous()
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    square = np.array(pixels.resize((size, size), resample))
    return torch.from_numpy(square).permute(2, 0, 1).contiguous()


def resize(image: Tensor, size: int) -> Tensor:
    """Resize (3, H, W) uint8 to (3, S, S) by torch's antialiased bicubic, for training.

    It is read in place, fastest where the colours of a pixel lie together, as they are decoded.
    """
    if image.shape[1:] == (size, size):
        return image.contiguous()
    return interpolate(image[None], size=(size, size), mode="bicubic", antialias=True)[0]


class TrainTransform:
    """Random crop, resize, flip and RandAugment of one image.

    `crop_scale` (1, 1) means no crop: the whole image is resized.
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
    """Draw RandAugment's operations, with replacement, those that are to be applied, and a sign.

    The draws come in the reference's order, so that its generator gives its operations.
    """
    drawn = []
    for index in rng.choice(len(OPERATIONS), NUM_OPERATIONS):
        operation = OPERATIONS[index]
        if rng.random() > PROBABILITY:
            continue
        sign = -1 if operation in SIGNED and rng.random() > 0.5 else 1
        drawn.append((operation, sign))
    return drawn


def apply_operation(image: Tensor, operation: str, sign: int, level: int = LEVEL) -> Tensor:
    """Apply one RandAugment operation at a level of 10 to (3, H, W) uint8.

    A positive sign shears along with the other axis, moves content to the left or up, and turns
    clockwise. At level 5, brightness and sharpness have the factor 1 and change nothing.
    """
    share = level / 10
    factor = 1.8 * share + 0.1
    match operation:
        case "identity":
            return image
        case "auto_contrast":
            return _look_up(image, _contrast_table)
        case "equalize":
            return _look_up(image, _equalize_table)
        case "brightness":
            return image if factor == 1 else _brighten(image, factor)
        case "sharpness":
            return image if factor == 1 else _sharpen(image, factor)
        case "shear_x":
            return _warp(image, ((1.0, -sign * share * SHEAR, 0.0), UNMOVED[1]))
        case "shear_y":
            return _warp(image, (UNMOVED[0], (-sign * share * SHEAR, 1.0, 0.0)))
        case "translate_x" | "translate_y":
            axis = 2 if operation == "translate_x" else 1
            return _shift(image, -sign * round(share * SHIFT), axis)
        case "rotate":
            return _warp(image, _rotation(image, math.radians(-sign * share * ANGLE)))
        case _:
            raise ValueError(f"no operation {operation!r}: one of {', '.join(OPERATIONS)}")


def _rotation(image: Tensor, angle: float) -> tuple[tuple[float, ...], ...]:
    """Where each pixel of an image turned counter-clockwise about (W/2, H/2) comes from."""
    x, y = image.shape[2] / 2, image.shape[1] / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y)


def _warp(image: Tensor, source: tuple[tuple[float, ...], ...]) -> Tensor:
    """Sample bilinearly at `source` (2 x 3: pixel of the result -> place in the image)."""
    height, width = image.shape[1:]
    places, right_share, lower_share = _places(height, width, source)
    stride = width + 4
    padded = torch.full((height + 4, stride), float(GREY))
    # A shear stays on the pixels of the other axis, where there is nothing to mix.
    between_columns, between_rows = (row not in UNMOVED for row in source)

    def look(offset: int) -> Tensor:
        return padded.view(-1)[offset:].index_select(0, places)

    def mix_row(offset: int) -> Tensor:
        pixels = look(offset)
        if between_columns:
            pixels.addcmul_(right_share, look(offset + 1).sub_(pixels))
        return pixels

    warped = torch.empty(image.shape, dtype=torch.uint8)
    for before, after in zip(image, warped, strict=True):  # a channel fits into the cache
        padded[2:-2, 2:-2] = before
        upper = mix_row(0)
        if between_rows:
            upper.addcmul_(lower_share, mix_row(stride).sub_(upper))
        after.view(-1).copy_(upper.round_().int())  # by way of int, at a third of the cost
    return warped


@functools.lru_cache(maxsize=8)  # two shears and a rotation, either way: six for images of one size
def _places(
    height: int, width: int, source: tuple[tuple[float, ...], ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Say what each pixel of a warped channel is mixed of, row by row (H * W).

    Shears hit halves between two grey levels again and again. They fall as OpenCV's do, since every
    step is rounded as there: `add` and `addcmul` multiply and add in one (on processors that can).

    Returns:
        The upper left of its four neighbours in a channel with two pixels of grey on every side,
        where whatever lies outside finds them; the shares of the right and of the lower ones.
    """
    x = torch.arange(width, dtype=torch.float32)
    y = torch.arange(height, dtype=torch.float32)[:, None]
    across, down = (torch.add(y * b + c, x, alpha=a) for a, b, c in source)
    left, top = across.floor(), down.floor()
    right_share, lower_share = across.sub_(left).view(-1), down.sub_(top).view(-1)
    column = (left.clamp_(-2, width) + 2).int()
    places = (top.clamp_(-2, height) + 2).int().mul_(width + 4).add_(column)
    return places.view(-1).long(), right_share, lower_share  # long: looked up at twice the speed


def _shift(image: Tensor, pixels: int, axis: int) -> Tensor:
    """Move by whole pixels along an axis; grey moves in."""
    shifted = torch.full_like(image, GREY)
    kept = max(image.shape[axis] - abs(pixels), 0)
    source, target = (0, abs(pixels)) if pixels > 0 else (abs(pixels), 0)
    shifted.narrow(axis, target if kept else 0, kept).copy_(
        image.narrow(axis, source if kept else 0, kept)
    )
    return shifted


def _brighten(image: Tensor, factor: float) -> Tensor:
    return (image * factor).clamp_(0, 255).to(torch.uint8)


def _sharpen(image: Tensor, factor: float) -> Tensor:
    """Move away from the mean of the neighbours, the middle counted five times; edges stay.

    As in the reference, what leaves 0 to 255 wraps around.
    """
    pixels = image.int()
    middle = pixels[:, 1:-1, 1:-1]
    columns = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    around = columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:]
    blurred = ((around + 4 * middle) / 13).round_()
    sharp = image.clone()
    sharp[:, 1:-1, 1:-1] = (blurred + factor * (middle - blurred)).int().to(torch.uint8)
    return sharp


def _look_up(image: Tensor, table: Callable[[NDArray[np.int64]], NDArray[np.uint8]]) -> Tensor:
    """Map every channel through the table that its histogram gives."""
    mapped = torch.empty(image.shape, dtype=torch.uint8)
    for before, after in zip(image.flatten(1), mapped.flatten(1), strict=True):
        histogram = torch.bincount(before, minlength=256).numpy()
        torch.index_select(torch.from_numpy(table(histogram)), 0, before.int(), out=after)
    return mapped


def _contrast_table(histogram: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Stretch from the darkest and lightest value to 0 and 255, as the reference does.

    It means to be Pillow's AutoContrast, but negates the darkest value as an unsigned byte: a
    channel without black becomes white.
    """
    used = np.flatnonzero(histogram)
    low, high = int(used[0]), int(used[-1])
    if high <= low:
        return np.arange(256, dtype=np.uint8)
    scale = 255 / (high - low)
    return np.clip(np.arange(256) * scale + (-low % 256) * scale, 0, 255).astype(np.uint8)


def _equalize_table(histogram: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Flatten the histogram, by Pillow's integer rule."""
    used = histogram[histogram > 0]
    step = (int(used.sum()) - int(used[-1])) // 255
    if len(used) <= 1 or not step:
        return np.arange(256, dtype=np.uint8)
    below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
    return np.minimum((step // 2 + below) // step, 255).astype(np.uint8)
