"""Frames out of videos: as many as are wanted, evenly spread, and none of a damaged file (BLIP.md 5.6).

Frames are counted by decoding them all, since what containers say of themselves is not to be relied
on. A file that ends before its container says it does was cut short: that is an error, as is a
packet or a frame that is damaged. Where a container only counts frames that nobody is to see (an
edit list hides them), the video is as long as it says, and what can be decoded counts. That a last
frame alone was lost, not every container tells.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from numpy.typing import NDArray
from torch import Tensor

from blip.errors import DataError

EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov")

LOCAL = {"protocol_whitelist": "file"}  # whatever a file refers to, nothing is fetched
SHORT = 1.5  # frames that a video may lack of what it is said to have: clocks are rounded


def uniform_frames(num_frames: int, wanted: int) -> NDArray[np.int64]:
    """Choose frames of a video, evenly spread.

    As the reference, numpy makes the step a whole number before it walks: 100 frames give every
    12th of them for 8, not every 12.5th, and a video of fewer frames than wanted gives its first
    one again and again.

    Args:
        num_frames: Of the video, at least 1.
        wanted: How many to choose.

    Returns:
        (wanted) rising numbers below `num_frames`.
    """
    return np.arange(0, num_frames, num_frames / wanted, dtype=np.int64)[:wanted]


def read_frames(path: Path, wanted: int, size: int) -> Tensor:
    """Decode evenly spread frames of a video, scaled straight to a square as its decoder does.

    Args:
        path: The video; it is decoded twice, so that no more than the wanted frames are held.
        wanted: How many frames.
        size: Side of the square.

    Returns:
        (wanted, 3, size, size) uint8, RGB.

    Raises:
        DataError: The video is missing, cut short, damaged, or has no frame.
    """
    chosen = uniform_frames(count_frames(path), wanted)
    kept: dict[int, Tensor] = {}
    for number, frame in enumerate(_decode(path)):
        if number in chosen:
            scaled = frame.reformat(size, size, "rgb24", interpolation=Interpolation.BILINEAR)
            kept[number] = torch.from_numpy(scaled.to_ndarray()).permute(2, 0, 1)
        if number == chosen[-1]:
            break
    return torch.stack([kept[number] for number in chosen.tolist()])


def count_frames(path: Path) -> int:
    """Give the number of frames that can be decoded.

    Raises:
        DataError: As `read_frames`.
    """
    count = sum(1 for _ in _decode(path))
    if not count:
        raise _damaged(path, "it has no frame")
    return count


class Videos:
    """The videos of a folder, by name without extension.

    Args:
        folder: Where they lie.

    Raises:
        DataError: The folder cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, list[Path]] = {}
        try:
            files = sorted(folder.iterdir())
        except OSError as error:
            raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
        for file in files:
            if file.suffix.lower() in EXTENSIONS:
                self._files.setdefault(file.stem, []).append(file)

    def find(self, names: Sequence[str]) -> Path:
        """Find a video that goes by any of some names.

        Raises:
            DataError: There is none, or there are several.
        """
        found = [file for name in names for file in self._files.get(name, [])]
        if len(found) != 1:
            problem = "holds no video" if not found else f"holds {len(found)} videos"
            raise DataError(
                f"{self.folder}: {problem} of the name {' or '.join(names)} "
                f"({', '.join(EXTENSIONS)}): there must be one"
            )
        return found[0]


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    """Give the frames of a video, in the order in which they are shown.

    Raises:
        DataError: It is missing, damaged, or ends early.
    """
    try:
        with av.open(str(path), options=LOCAL) as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video: name another file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            packets, last = 0, None
            for packet in container.demux(stream):
                packets += packet.size > 0
                if packet.is_corrupt:
                    raise _damaged(path, f"packet {packets} is cut short or damaged")
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise _damaged(path, f"the frame at {frame.time} s is damaged")
                    last = frame
                    yield frame
            _check_end(path, container, packets, last)
    except (av.FFmpegError, OSError) as error:
        raise _damaged(path, error.strerror or str(error)) from None


def _check_end(path: Path, container: Any, packets: int, last: av.VideoFrame | None) -> None:
    """See that a video holds what its container says: its seconds, and its frames where it counts.

    An edit list of MP4 hides frames that are counted: there, seconds must be missing too.
    """
    if last is None or last.time is None:
        return
    stream = container.streams.video[0]
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    ticks = (last.duration or 0) * (last.time_base or 0)
    end = (
        last.time + (float(ticks) or 1 / rate) - float((stream.start_time or 0) * stream.time_base)
    )
    too_short = end < _stated_seconds(stream) - SHORT / rate
    if stream.frames:
        too_few = stream.frames - packets > SHORT
        too_short = too_few and (too_short or "mov" not in container.format.name)
    if too_short:
        raise _damaged(path, f"it ends after {end:.2f} s, before its container says")


def _stated_seconds(stream: Any) -> float:
    """Give the length of a stream by its container, 0 where it says none; Matroska's is a tag."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return 3600 * float(hours) + 60 * float(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(f"{path}: cannot be decoded: {problem}: fetch it again")
