"""Pictures of where a model looks: its Grad-CAM maps laid over the image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from blip.files import atomic_file

COLUMNS = 4
MIN_SIDE = 160  # of a panel, so that its words can be read
BAR = 24  # for the words above a panel
GAP = 4
OPACITY = 0.75  # of the colour where a map is highest

Floats = NDArray[np.float32]


def draw_heatmaps(
    image: NDArray[np.uint8], panels: Sequence[tuple[str, Floats]], out: Path
) -> None:
    """Write a PNG with a panel for every map, from black over red and yellow to white.

    A map's highest value is white: panels show where, not how much.

    Args:
        image: (S, S, 3) RGB, as the model sees it.
        panels: Words above, and a map (P, P) of values from 0.
        out: The file.
    """
    side = max(image.shape[0], MIN_SIDE)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    sheet = Image.new(
        "RGB", (columns * (side + GAP) - GAP, rows * (side + BAR + GAP) - GAP), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (words, heat) in enumerate(panels):
        left, top = number % columns * (side + GAP), number // columns * (side + BAR + GAP)
        sheet.paste(_overlay(image, heat, side), (left, top + BAR))
        pen.text((left + 2, top + 3), _shortened(words, font, side - 4), "black", font)
    with atomic_file(out) as file:
        sheet.save(file, "PNG")


def _overlay(image: NDArray[np.uint8], heat: Floats, side: int) -> Image.Image:
    scaled = heat / max(float(heat.max()), 1e-12)
    smooth = Image.fromarray(scaled.astype(np.float32)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    share = np.asarray(smooth).clip(0.0, 1.0)[:, :, None]
    colour = 255.0 * np.clip(3.0 * share - np.arange(3.0), 0.0, 1.0)  # red, then green, then blue
    below = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    mixed = below * (1.0 - OPACITY * share) + colour * OPACITY * share
    return Image.fromarray(mixed.round().astype(np.uint8))


def _shortened(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cut words that are wider than a panel."""
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(f"{words}…") > width:
        words = words[:-1]
    return f"{words}…"
