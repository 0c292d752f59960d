"""Frames of videos that are made here: the right ones, and none of a damaged file."""

from pathlib import Path

import av
import numpy as np
import pytest

from blip.data.video import Videos, count_frames, read_frames, uniform_frames
from blip.errors import DataError
from tests.data.videos import make_video

KINDS = [("a.mp4", "libx264"), ("b.mp4", "mpeg4"), ("c.mkv", "libx264"), ("d.avi", "mpeg4")]


def test_frames_are_chosen_as_the_reference_does() -> None:
    for count in (1, 5, 8, 17, 100, 300):
        for wanted in (8, 16):
            official = np.arange(0, count, count / wanted, dtype=int)
            assert uniform_frames(count, wanted).tolist() == official.tolist()
            assert len(official) == wanted
    assert uniform_frames(100, 8).tolist() == [0, 12, 24, 36, 48, 60, 72, 84]
    assert uniform_frames(5, 8).tolist() == [0] * 8


@pytest.mark.parametrize("wanted", range(1, 40))
def test_there_are_never_more_frames_than_wanted(wanted: int) -> None:
    for count in range(1, 200):
        chosen = uniform_frames(count, wanted)
        assert len(chosen) == wanted
        assert chosen.max() < count


@pytest.mark.parametrize(("name", "codec"), KINDS)
def test_the_wanted_frames_are_read(tmp_path: Path, name: str, codec: str) -> None:
    path = make_video(tmp_path / name, [10 * n for n in range(20)], codec)
    assert count_frames(path) == 20
    frames = read_frames(path, 4, 32)
    assert frames.shape == (4, 3, 32, 32)
    grey = frames.float().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(grey, [0, 50, 100, 150], atol=4)  # what the codec loses


def test_a_frame_is_scaled_straight_to_the_square(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", [0, 90, 180], "libx264", (80, 48))
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    expected = frames[1].reformat(32, 32, "rgb24", interpolation="BILINEAR").to_ndarray()
    found = read_frames(path, 3, 32)[1].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("name", "codec"), KINDS)
def test_a_video_that_was_cut_short_is_named(
    tmp_path: Path, name: str, codec: str, share: float
) -> None:
    path = make_video(tmp_path / name, list(range(0, 200, 5)), codec)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"{name}: cannot be decoded"):
        read_frames(path, 4, 32)


@pytest.mark.parametrize(("name", "codec"), KINDS)
def test_a_damaged_video_is_named(tmp_path: Path, name: str, codec: str) -> None:
    path = make_video(tmp_path / name, list(range(0, 200, 5)), codec)
    content = bytearray(path.read_bytes())
    start = int(0.7 * len(content))  # behind what AVI reserves at the beginning
    content[start : start + 300] = np.random.default_rng(0).bytes(300)
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: cannot be decoded"):
        read_frames(path, 4, 32)


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.mp4: cannot be decoded: No such file"):
        read_frames(tmp_path / "none.mp4", 4, 32)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text\.mp4: cannot be decoded: Invalid data"):
        read_frames(tmp_path / "text.mp4", 4, 32)


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4", list(range(0, 200, 5)), "libx264")
    edited = tmp_path / "edited.mp4"
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(whole)) as source, av.open(str(edited), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is None:
                continue
            second = int(1 / packet.time_base)  # 10 frames
            packet.pts, packet.dts = packet.pts - second, packet.dts - second
            packet.stream = stream
            target.mux(packet)
    assert count_frames(edited) == 30


def test_videos_are_found_by_name(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.AVI", "b.webm", "c.txt"):
        (tmp_path / name).touch()
    videos = Videos(tmp_path)
    assert videos.find(["x", "a"]) == tmp_path / "a.mp4"
    with pytest.raises(DataError, match="holds no video of the name c"):
        videos.find(["c"])
    with pytest.raises(DataError, match="holds 2 videos of the name b"):
        videos.find(["b"])
    with pytest.raises(DataError, match="cannot be read"):
        Videos(tmp_path / "none")


@pytest.mark.parametrize(("name", "codec"), KINDS)
def test_wherever_a_video_is_cut(tmp_path: Path, name: str, codec: str) -> None:
    """It is refused, or all but its last frame are there: what only the index behind them lost."""
    path = make_video(tmp_path / name, list(range(0, 200, 5)), codec)
    content = path.read_bytes()
    refused = 0
    for size in range(1, len(content), len(content) // 60):
        path.write_bytes(content[:size])
        try:
            assert count_frames(path) >= 39
        except DataError:
            refused += 1
    assert refused > 20
