"""Pictures of scenes, to the same bytes on every machine.

Masks, blending and noise are whole numbers, so that nothing rounds differently elsewhere, and the
PNG's deflate blocks are stored, not compressed, so that no version of zlib can change them.
"""

import functools
import struct
import zlib
from typing import Any

import numpy as np

from blip.data.scenes import Dice, Group, Relation, Scene

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Integers = np.ndarray[Any, np.dtype[np.int32]]

UNIT = 64  # lengths below are for pictures of this side and scale with it
SIDE = {"small": 19, "large": 28}
RGB = {
    "red": (208, 34, 44),
    "orange": (240, 124, 20),
    "yellow": (246, 208, 36),
    "green": (36, 146, 66),
    "blue": (36, 84, 206),
    "purple": (138, 56, 172),
}
TONE = {"light": 222, "grey": 150, "dark": 62}

_BLOCK = 65535  # bytes in one stored deflate block, at most


def draw_picture(scene: Scene, side: int, dice: Dice) -> Pixels:
    """Draw a scene.

    Args:
        scene: What to draw.
        side: Pixels of each side.
        dice: For what the scene does not say: places, tints, grain.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    canvas = _background(scene, side, dice)
    for group, centres in zip(scene.groups, _places(scene, dice), strict=True):
        length = _scaled(SIDE[group.size] - dice.below(3), side)
        colour = np.array(RGB[group.colour], np.int32) + dice.noise((3,), 10)
        for x, y in centres:
            _stamp(canvas, group, length, colour, _scaled(x, side), _scaled(y, side))
    return np.clip(canvas, 0, 255).astype(np.uint8)


def encode_png(pixels: Pixels) -> bytes:
    """Encode (H, W, 3) uint8 RGB as a PNG whose deflate blocks are stored, not compressed."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a leading 0 says: row not filtered
    rows[:, 1:] = pixels.reshape(height, 3 * width)
    raw = rows.tobytes()
    blocks = [b"\x78\x01"]
    for start in range(0, len(raw), _BLOCK):
        block = raw[start : start + _BLOCK]
        last = start + _BLOCK >= len(raw)
        blocks += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    blocks.append(struct.pack(">I", zlib.adler32(raw)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", b"".join(blocks)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _scaled(length: int, side: int) -> int:
    return length * side // UNIT


def _background(scene: Scene, side: int, dice: Dice) -> Integers:
    tint = dice.noise((3,), 8)
    slope = dice.around(12)
    ramp = np.arange(side, dtype=np.int32) * (2 * slope) // side - slope
    canvas = np.empty((side, side, 3), np.int32)
    canvas[:] = TONE[scene.tone] + tint
    canvas += ramp[:, None, None]
    if scene.pattern == "speckled":
        canvas += dice.noise((side, side, 1), 22)
    elif scene.pattern == "checked":
        tile = np.arange(side, dtype=np.int32) // max(_scaled(8, side), 1)
        canvas += (((tile[:, None] + tile[None]) % 2) * 26 - 13)[:, :, None]
    return canvas


def _places(scene: Scene, dice: Dice) -> list[list[tuple[int, int]]]:
    """Give the centres (x, y) of each group's members, in `UNIT` lengths."""
    if scene.relation is None:
        return [[_jitter(x, y, 2, dice) for x, y in _alone(scene.groups[0].count, dice)]]
    first, second = _halves(scene.relation)
    places = []
    for group, middle in zip(scene.groups, (first, second), strict=True):
        across = [32 + dice.around(8)] if group.count == 1 else [17, 47]
        upright = scene.relation in ("above", "below")
        centres = [(a, middle) if upright else (middle, a) for a in across]
        places.append([_jitter(x, y, 1, dice) for x, y in centres])
    return places


def _alone(count: int, dice: Dice) -> list[tuple[int, int]]:
    if count == 1:
        return [(32 + dice.around(8), 32 + dice.around(8))]
    corners = [(17, 17), (47, 17), (17, 47), (47, 47)]
    if count == 3:
        corners.remove(dice.pick(corners))
        return corners
    return dice.pick([[(17, 32), (47, 32)], [(32, 17), (32, 47)], corners[::3], corners[1:3]])


def _halves(relation: Relation) -> tuple[int, int]:
    return (16, 48) if relation in ("left", "above") else (48, 16)


def _jitter(x: int, y: int, n: int, dice: Dice) -> tuple[int, int]:
    return x + dice.around(n), y + dice.around(n)


def _stamp(canvas: Integers, group: Group, length: int, colour: Integers, x: int, y: int) -> None:
    """Blend one shape and its shadow into the canvas, cut at the border."""
    coverage, shade, gloss = _sprite(group.shape, group.texture, length)
    paint = colour * shade[..., None] // 256
    paint += (255 - paint) * gloss[..., None] // 256
    left, top = x - coverage.shape[1] // 2, y - coverage.shape[0] // 2
    drop = max(length // 12, 1)
    _blend(canvas, coverage * 90 // 255, np.zeros((1, 1, 3), np.int32), left + drop, top + drop)
    _blend(canvas, coverage, paint, left, top)


def _blend(canvas: Integers, alpha: Integers, paint: Integers, left: int, top: int) -> None:
    height, width = alpha.shape
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, canvas.shape[1]), min(top + height, canvas.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    rows, columns = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    a = alpha[rows, columns, None]
    p = np.broadcast_to(paint, (height, width, 3))[rows, columns]
    area = canvas[y0:y1, x0:x1]
    area += (p - area) * a // 255


@functools.cache
def _sprite(shape: str, texture: str, length: int) -> tuple[Integers, Integers, Integers]:
    """Give a shape's coverage (of 255), shade (256: as is) and gloss (256: white), all (H, W)."""
    half = length // 2 + 1
    # Four samples a pixel and axis, placed in eighths of a pixel.
    points = np.arange(-8 * half + 1, 8 * half, 2, dtype=np.int32)
    x, y = np.meshgrid(points, points)
    inside = _inside(shape, x, y, 4 * length)
    size = 2 * half
    coverage = inside.reshape(size, 4, size, 4).sum((1, 3), dtype=np.int32) * 255 // 16
    row, column = np.mgrid[0:size, 0:size].astype(np.int32)
    shade = 276 - (row + column) * 40 // (2 * size)  # lit from the upper left
    gloss = np.zeros((size, size), np.int32)
    if texture == "striped":
        step = max(length // 6, 2)
        shade = np.where((row + column) // step % 2 == 1, shade * 130 // 256, shade)
    elif texture == "dotted":
        step = max(length // 4, 4)
        gloss[((row - half + 1) % step < 2) & ((column - half + 1) % step < 2)] = 210
    return coverage, shade, gloss


def _inside(
    shape: str, x: Integers, y: Integers, radius: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which points lie in a shape that spans [-radius, radius]."""
    ax, ay = abs(x), abs(y)
    match shape:
        case "square":
            return np.maximum(ax, ay) * 8 <= radius * 7
        case "ring":
            squared = x * x + y * y
            return (squared <= radius * radius) & (squared * 100 >= radius * radius * 30)
        case "bar":
            return (ax <= radius) & (ay * 3 <= radius)
        case "pole":
            return (ay <= radius) & (ax * 3 <= radius)
        case "cross":
            return (np.maximum(ax, ay) <= radius) & (np.minimum(ax, ay) * 10 <= radius * 3)
    raise ValueError(f"no shape {shape!r}")
