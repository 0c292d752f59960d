"""Decoding of good, bad and hostile images; reading them from shards."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blip.data.dataset import RECORDS, Shard, write_table
from blip.data.drawing import encode_png
from blip.data.images import OversizedImageError, ShardImages, decode_image, read_header
from blip.data.tar import TarWriter
from blip.errors import DataError

PIXELS = np.cumsum(np.random.default_rng(0).integers(-3, 4, (40, 56, 3)), 0).astype(np.uint8)


def encode(form: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, form, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge, in 90 bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats(form: str) -> None:
    data = encode(form)
    image = decode_image(data, 10_000)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 40, 56))
    assert image.permute(1, 2, 0).is_contiguous()
    header = read_header(data, 10_000)
    assert (header.width, header.height) == (56, 40)
    assert header.extension == {"JPEG": "jpg"}.get(form, form.lower())


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "I;16"])
def test_png_modes_become_rgb(mode: str) -> None:
    data = encode("PNG", mode)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(data, 10_000).permute(1, 2, 0), wanted)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["RGB", "L", "CMYK"]),
    st.integers(1, 40),
    st.integers(1, 56),
    st.integers(1, 100),
    st.sampled_from([0, 1, 2]),  # 4:4:4, 4:2:2, 4:2:0
    st.booleans(),
)
def test_jpegs_are_as_pillow_decodes_them(
    mode: str, height: int, width: int, quality: int, subsampling: int, progressive: bool
) -> None:
    file = io.BytesIO()
    options = {"quality": quality, "progressive": progressive}
    if mode == "RGB":
        options["subsampling"] = subsampling
    Image.fromarray(PIXELS[:height, :width]).convert(mode).save(file, "JPEG", **options)
    with Image.open(file) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(file.getvalue(), 10_000).permute(1, 2, 0), wanted)


def test_a_jpeg_that_is_too_large_is_not_decoded() -> None:
    assert decode_image(encode("JPEG"), 40 * 56).shape == (3, 40, 56)
    with pytest.raises(OversizedImageError, match="56 x 40 pixels are more than the 2239 allowed"):
        decode_image(encode("JPEG"), 40 * 56 - 1)


def test_photos_are_as_pillow_decodes_them(shared: Path) -> None:
    for file in sorted((shared / "data/coco_photos/images").iterdir())[:12]:
        with Image.open(file) as image:
            wanted = np.asarray(image.convert("RGB"))
        assert np.array_equal(decode_image(file.read_bytes(), 10**6).permute(1, 2, 0), wanted)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_truncated_image(form: str, share: float) -> None:
    data = encode(form)
    with pytest.raises(DataError):
        decode_image(data[: int(len(data) * share)], 10_000)


def test_stray_bytes_behind_a_jpeg_are_forgiven() -> None:
    assert decode_image(encode("JPEG") + b"\r\n", 10_000).shape == (3, 40, 56)


@pytest.mark.parametrize("side", [400, 12_000, 60_000])  # 60,000: Pillow itself refuses
@pytest.mark.parametrize("read", [read_header, decode_image])
def test_bomb_is_not_decoded(side: int, read: Callable[[bytes, int], object]) -> None:
    with pytest.raises(OversizedImageError):
        read(bomb(side, side), 150_000)


@pytest.mark.parametrize("data", [b"", b"hello", b"<html></html>", b"\xff\xd8\xff", b"%PDF-1.4"])
def test_no_image(data: bytes) -> None:
    with pytest.raises(DataError, match=r"no image of a known format|cannot be"):
        decode_image(data, 10_000)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_images_give_pixels_or_a_data_error(
    form: str, damage: list[tuple[int, int]]
) -> None:
    data = bytearray(encode(form))
    for place, value in damage:
        data[place % len(data)] = value
    try:
        image = decode_image(bytes(data), 100_000)
    except DataError:
        return
    assert image.shape[0] == 3
    assert image.numel() <= 300_000


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    records = []
    with TarWriter(tmp_path / "i.tar") as tar:
        for i in range(3):
            data = encode_png(np.full((8, 8, 3), i, np.uint8))
            row = {"key": str(i), "source": str(i), "width": 8, "height": 8, "extension": "png"}
            records.append({**row, "offset": tar.add(f"{i}.png", data), "size": len(data)})
    table = tmp_path / "r.parquet"
    digest = write_table(table, pa.Table.from_pylist(records, RECORDS))
    return Shard(tmp_path / "i.tar", table, tmp_path / "none", tar.digest, digest, "", 3, 0)


def test_rows_of_a_shard(shard: Shard) -> None:
    images = ShardImages(shard)
    assert [int(decode_image(images.read(i), 64)[0, 0, 0]) for i in (2, 0, 1)] == [2, 0, 1]


def test_tampered_shard(shard: Shard) -> None:
    content = bytearray(shard.images.read_bytes())
    content[700] ^= 1
    shard.images.write_bytes(content)
    with pytest.raises(DataError, match=r"i\.tar: .*tampered with or cut short"):
        ShardImages(shard).read(0)


def test_shard_cut_short(shard: Shard) -> None:
    shard.images.write_bytes(shard.images.read_bytes()[:-1024])
    with pytest.raises(DataError, match=r"i\.tar: .*tampered with or cut short"):
        ShardImages(shard).read(0)


def test_shard_cut_short_while_in_use(shard: Shard) -> None:
    images = ShardImages(shard)
    images.read(0)
    shard.images.write_bytes(shard.images.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"i\.tar: was cut short while it was in use"):
        images.read(2)


def test_missing_shard(shard: Shard) -> None:
    shard.images.unlink()
    with pytest.raises(DataError, match=r"i\.tar: cannot be read"):
        ShardImages(shard).read(0)
