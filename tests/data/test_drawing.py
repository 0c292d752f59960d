"""Drawn pictures and their PNGs."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blip.data.drawing import RGB, draw_picture, encode_png
from blip.data.scenes import COLOURS, SHAPES, TEXTURES, Dice, Group, Scene


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_png_round_trip(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("side", [147, 148, 209])  # 65268, 66156 (two blocks), 131461 (three) bytes
def test_png_of_several_blocks(side: int) -> None:
    pixels = np.arange(side * side * 3, dtype=np.uint32).reshape(side, side, 3).astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)


def mass(scene: Scene, side: int = 64) -> np.ndarray:
    """Pixels (side, side) whose colour is nearer to the first group's than to the background."""
    picture = draw_picture(scene, side, Dice(1)).astype(int)
    paint = np.array(RGB[scene.groups[0].colour])
    return abs(picture - paint).sum(-1) < 90


def test_shapes_cover_where_their_names_say() -> None:
    centre = {}
    for shape in SHAPES:
        drawn = mass(Scene((Group(shape, "red", "large", "plain", 1),), None, "light", "plain"))
        rows, columns = np.nonzero(drawn)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        middle = drawn[rows.min() + height // 2, columns.min() + width // 2]
        corner = drawn[rows.min() : rows.min() + 3, columns.min() : columns.min() + 3].any()
        centre[shape] = (round(height / width, 1), bool(middle), bool(corner))
    assert centre["square"] == (1.0, True, True)
    assert centre["ring"] == (1.0, False, False)
    assert centre["cross"] == (1.0, True, False)
    assert centre["bar"][0] < 0.5 < 2 < centre["pole"][0]


@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
def test_groups_stand_where_the_relation_says(relation: str) -> None:
    groups = (
        Group("square", "red", "small", "plain", 2),
        Group("ring", "blue", "large", "plain", 1),
    )
    for seed in range(20):
        scene = Scene(groups, relation, "light", "plain")  # type: ignore[arg-type]
        picture = draw_picture(scene, 64, Dice(seed)).astype(int)
        places = [np.argwhere(abs(picture - RGB[g.colour]).sum(-1) < 90).mean(0) for g in groups]
        down, right = places[1] - places[0]
        offset = {"left": right, "right": -right, "above": down, "below": -down}[relation]
        assert offset > 20


@settings(deadline=None)
@given(st.sampled_from([32, 48, 64, 100, 224]), st.integers(0, 10**6))
def test_any_size_is_drawn(side: int, seed: int) -> None:
    dice = Dice(seed)
    groups = tuple(
        Group(dice.pick(SHAPES), dice.pick(COLOURS), "large", dice.pick(TEXTURES), 2) for _ in "ab"
    )
    picture = draw_picture(Scene(groups, "left", "dark", "checked"), side, dice)
    assert picture.shape == (side, side, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 5


def test_colours_are_far_apart() -> None:
    for one, other in itertools.combinations(RGB.values(), 2):
        assert abs(np.array(one) - np.array(other)).sum() > 90  # tints move a colour by 30 at most
