"""Image transforms against the outputs of the reference, which has them from Pillow and OpenCV."""

import re

import numpy as np
import pytest
import torch

from blip.data.transforms import (
    OPERATIONS,
    apply_operation,
    draw_operations,
    evaluation_resize,
    evaluation_transform,
)

TOLERANCE = 1e-5  # of normalised pixels; measured: 0


def channels_first(pixels):
    return pixels.permute(2, 0, 1).contiguous()


def test_evaluation_transform(golden):
    reference = golden("image_eval_transform")
    image = channels_first(reference["in/rgb_uint8_hwc"])
    cases = {name.split("/")[0] for name in reference.tensors if name.startswith("eval_")}
    assert cases
    for case in cases:
        size = int(case.removeprefix("eval_"))
        resized = channels_first(reference[f"{case}/resized_uint8"])
        assert torch.equal(evaluation_resize(image, size), resized), case
        expected = reference[f"{case}/normalized_chw"]
        ours = evaluation_transform(image, size)
        torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation(golden, operation):
    """Every level and sign that is recorded. Measured: no value differs (torch 2.13, x86)."""
    reference = golden("randaugment_ops")
    image = channels_first(reference["in/rgb_uint8_hwc"])
    name = operation.title().replace("_", "")
    cases = reference.under(f"{name}/")
    assert cases
    for case, pixels in cases.items():
        level, draw = re.fullmatch(r"level(\d+)/rand([\d.]+)", case).groups()
        result = apply_operation(image, operation, -1 if float(draw) > 0.5 else 1, int(level))
        assert torch.equal(result, channels_first(pixels)), case


def test_composition(golden):
    """The reference's generator draws the reference's operations. Measured: no value differs."""
    reference = golden("randaugment_ops")
    cases = reference.under("RandomAugment_N2_M5/np_seed")
    assert cases
    for seed, pixels in cases.items():
        image = channels_first(reference["in/rgb_uint8_hwc"])
        for operation, sign in draw_operations(np.random.RandomState(int(seed))):
            image = apply_operation(image, operation, sign)
        assert torch.equal(image, channels_first(pixels)), seed
