"""Videos made for tests."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np


def make_video(
    path: Path, greys: Sequence[int], codec: str = "libx264", size: tuple[int, int] = (64, 48)
) -> Path:
    """Write a video of one grey frame after the other, a tenth of a second each."""
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # equal bytes every time
        for number, grey in enumerate(greys):
            pixels = np.full((size[1], size[0], 3), grey, dtype=np.int16)
            noise = np.random.default_rng(number).integers(-8, 9, pixels.shape)
            image = np.clip(pixels + noise, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return path
