"""The image transforms against Pillow and against what they are to mean."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor

from blip.config import Augmentation
from blip.data.transforms import (
    OPERATIONS,
    TrainTransform,
    apply_operation,
    draw_crop,
    draw_operations,
    evaluation_resize,
    evaluation_transform,
    normalise,
    resize,
)

CALM = Augmentation(crop_scale=(1.0, 1.0), flip=0.0, randaugment=False)
WILD = Augmentation(crop_scale=(0.2, 1.0), flip=0.5, randaugment=True)


def noise(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [16, 50, 90])
def test_resizing_is_pillows_in_evaluation_and_near_it_in_training(size: int) -> None:
    image = noise(50, 70)
    square = pillow(image).resize((size, size), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(square)).permute(2, 0, 1)
    assert torch.equal(evaluation_resize(image, size), expected)
    assert torch.equal(evaluation_transform(image, size), normalise(expected))
    difference = (resize(image, size).int() - expected.int()).abs()
    assert difference.max() <= 2  # measured: 1
    assert difference.float().mean() < 0.02  # measured: 0.002, 0, 0.007


def test_auto_contrast_is_pillows_where_there_is_black() -> None:
    image = noise(40, 30) // 2
    image[:2, 0, 0] = 0
    image[2] += 30
    expected = torch.from_numpy(np.array(ImageOps.autocontrast(pillow(image)))).permute(2, 0, 1)
    result = apply_operation(image, "auto_contrast", 1)
    assert (result[:2].int() - expected[:2].int()).abs().max() <= 1
    assert (result[2] == 255).all()  # no black: white, as in the reference


def test_brightness_and_sharpness_at_other_levels() -> None:
    image = noise(6, 7)
    assert (
        apply_operation(image, "brightness", 1) is apply_operation(image, "sharpness", 1) is image
    )
    darker = apply_operation(image, "brightness", 1, level=0)
    assert torch.equal(darker, (image * 0.1).to(torch.uint8))
    blurred = apply_operation(image, "sharpness", 1, level=0)
    window = image[0, 1:4, 2:5].double()
    mean = (window.sum() + 4 * window[1, 1]) / 13
    assert blurred[0, 2, 3] == int(mean.round() + 0.1 * (window[1, 1] - mean.round()))
    assert torch.equal(blurred[:, 0], image[:, 0])


def test_signs_and_levels_move_as_they_say() -> None:
    image = torch.full((3, 41, 41), 128, dtype=torch.uint8)
    image[:, 20, 30] = 255  # right of the middle
    image[:, 30, 20] = 0  # below it

    def place(operation: str, sign: int, value: int, level: int = 5) -> tuple[int, int]:
        moved = apply_operation(image, operation, sign, level)[0].int()
        return divmod(int((moved - value).abs().argmin()), 41)

    assert place("translate_x", 1, 255) == (20, 25)
    assert place("translate_y", -1, 255, level=10) == (30, 30)
    assert place("shear_x", 1, 0, level=10) == (30, 29)
    assert place("shear_y", -1, 255, level=10) == (11, 30)
    assert place("rotate", 1, 255) == (22, 30)  # clockwise


@pytest.mark.parametrize("operation", OPERATIONS)
def test_flat_images_and_tiny_images_survive(operation: str) -> None:
    flat = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    assert apply_operation(flat, operation, 1)[:, 16, 16].tolist() == [200] * 3
    assert apply_operation(noise(4, 4), operation, -1).shape == (3, 4, 4)


def test_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="no operation 'blur'"):
        apply_operation(noise(8, 8), "blur", 1)


def test_calm_transform_of_a_fitting_image_costs_nothing() -> None:
    image = noise(64, 64)
    assert TrainTransform(CALM, 64)(image, np.random.default_rng(0)) is image


def test_transform_depends_on_its_generator_alone() -> None:
    transform = TrainTransform(WILD, 32)
    image = noise(50, 70)
    first, again, other = (transform(image, np.random.default_rng((7, 0, i))) for i in (3, 3, 4))
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_flip_mirrors() -> None:
    always = Augmentation(crop_scale=(1.0, 1.0), flip=1.0, randaugment=False)
    image = noise(16, 16)
    flipped = TrainTransform(always, 16)(image, np.random.default_rng(0))
    assert torch.equal(flipped.flip(2), image)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.05, 1.0), st.integers(0, 99))
def test_crops_lie_inside(height: int, width: int, low: float, seed: int) -> None:
    top, left, h, w = draw_crop(height, width, (low, 1.0), np.random.default_rng(seed))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0
    assert w > 0


def test_draws_have_the_stated_frequencies() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_operations(rng) for _ in range(4000)]
    applied = sum(len(operations) for operations in drawn)
    assert applied / 8000 == pytest.approx(0.5, abs=0.02)
    shares = [sum(name == o for ops in drawn for name, _ in ops) / applied for o in OPERATIONS]
    assert shares == pytest.approx([0.1] * 10, abs=0.02)
