"""The image transforms against Pillow's and OpenCV's outputs that the reference code gave."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor

from blip.config import Augmentation
from blip.data.transforms import (
    OPERATIONS,
    TrainTransform,
    apply_operation,
    draw_crop,
    draw_operations,
    evaluation_transform,
    normalise,
    resize,
)

CALM = Augmentation(crop_scale=(1.0, 1.0), flip=0.0, randaugment=False)
WILD = Augmentation(crop_scale=(0.2, 1.0), flip=0.5, randaugment=True)

REFERENCE_NAMES = {
    "Identity": "identity",
    "Brightness": "brightness",
    "Sharpness": "sharpness",
    "Equalize": "equalize",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
}


def channels_first(pixels: Tensor) -> Tensor:
    return pixels.permute(2, 0, 1).contiguous()


def noise(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [32, 64, 224])
def test_evaluation_transform_follows_pillow(shared: Path, size: int) -> None:
    golden = load_file(shared / "golden/image_eval_transform.safetensors")
    image = channels_first(golden["in/rgb_uint8_hwc"])
    expected = channels_first(golden[f"eval_{size}/resized_uint8"])
    difference = (resize(image, size).int() - expected.int()).abs()
    assert difference.max() <= 2  # measured: 1, 1, 2 of 255
    assert difference.float().mean() < 0.01  # measured: 0.002, 0.005, 0.006
    normalised = golden[f"eval_{size}/normalized_chw"]
    assert torch.equal(normalise(expected), normalised)
    assert torch.allclose(evaluation_transform(image, size), normalised, atol=2 / 255 / 0.26)


@pytest.mark.parametrize("name", REFERENCE_NAMES)
@pytest.mark.parametrize("draw", [0.0, 0.99])
def test_operations_follow_the_reference(shared: Path, name: str, draw: float) -> None:
    golden = load_file(shared / "golden/randaugment_ops.safetensors")
    image = channels_first(golden["in/rgb_uint8_hwc"])
    expected = channels_first(golden[f"{name}/level5/rand{draw}"])
    # The sign of the reference's draw: below 0.5 it shifts back, shears along, turns clockwise.
    sign = 1 if draw > 0.5 else -1
    if name.startswith("Shear"):
        sign = -sign
    result = apply_operation(image, REFERENCE_NAMES[name], sign)
    difference = (result.int() - expected.int()).abs()
    assert difference.max() <= 1  # measured: 0, and 1 for shears and rotations
    assert difference.float().mean() < 0.05  # measured: 0, shears 0.025, rotations 0.001


def test_auto_contrast_is_pillows() -> None:
    image = noise(40, 30) // 2 + 30
    expected = ImageOps.autocontrast(Image.fromarray(image.permute(1, 2, 0).numpy()))
    result = apply_operation(image, "auto_contrast", 1).permute(1, 2, 0).numpy()
    assert np.abs(result.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_composition_follows_the_reference(shared: Path) -> None:
    """The draws of the reference (N=2, each with probability a half), our operations."""
    golden = load_file(shared / "golden/randaugment_ops.safetensors")
    original = channels_first(golden["in/rgb_uint8_hwc"])
    for seed in range(4):
        rng = np.random.RandomState(seed)
        image = original
        for index in rng.choice(len(OPERATIONS), 2):
            operation = OPERATIONS[index]
            if rng.random_sample() > 0.5:
                continue
            sign = 1
            if operation.startswith(("shear", "translate", "rotate")):
                sign = -1 if rng.random_sample() < 0.5 else 1
            if operation.startswith("shear"):
                sign = -sign
            image = apply_operation(image, operation, sign)
        expected = channels_first(golden[f"RandomAugment_N2_M5/np_seed{seed}"])
        difference = (image.int() - expected.int()).abs()
        assert difference.max() <= 1, seed  # measured: 1 in seed 1, else 0


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
