import io
import os
from itertools import count

import numpy as np
import pytest
import torch
from PIL import Image

from blip.data.images import FORMATS
from blip.data.pictures import Source, list_pictures, picture_batches, read_picture
from blip.errors import ConfigError, DataError


def encoded(kind="PNG", value=0):
    file = io.BytesIO()
    pixels = np.full((30, 40, 3), value, np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def names(arguments, data=b""):
    return [source.name for source in list_pictures(arguments, io.BytesIO(data))]


@pytest.fixture
def folder(tmp_path):
    for name in ("b/two.JPG", "a.png", "b/a/one.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded())
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_a_folder_gives_the_images_below_it_sorted(folder):
    expected = [str(folder / name) for name in ("a.png", "b/a/one.webp", "b/two.JPG")]
    assert names([str(folder)]) == expected
    assert names(["x.gif", str(folder / "b")]) == ["x.gif", *expected[1:]]


@pytest.mark.parametrize("kind", FORMATS)
def test_standard_input_may_be_an_image(kind):
    data = encoded(kind)
    (source,) = list_pictures(["-"], io.BytesIO(data))
    assert source == Source("-", data)
    assert read_picture(source, 8).pixels.shape == (3, 8, 8)


def test_standard_input_may_be_names(folder):
    lines = b"BMW.jpg\r\n\n" + os.fsencode(folder / "b") + b"\nlast.png"
    below = [str(folder / "b/a/one.webp"), str(folder / "b/two.JPG")]
    assert names(["first", "-"], lines) == ["first", "BMW.jpg", *below, "last.png"]
    assert names(["-"], b"") == []
    with pytest.raises(ConfigError, match="- is there twice"):
        names(["-", "-"])


def test_batches_keep_the_order_and_what_is_bad_is_named(tmp_path):
    sources = [Source(f"{i}.png", encoded(value=i)) for i in range(7)]
    sources[2] = Source("bad.png", b"no image")
    sources[5] = Source(str(tmp_path / "nowhere.png"))
    sources.append(Source(str(tmp_path)))
    refused = []
    batches = list(picture_batches(sources, 16, 2, refused.append))
    assert [[p.name for p in batch] for batch in batches] == [
        ["0.png", "1.png"],
        ["3.png", "4.png"],
        ["6.png"],
    ]
    assert [int(p.pixels.max()) for batch in batches for p in batch] == [0, 1, 3, 4, 6]
    assert all(p.pixels.dtype == torch.uint8 for batch in batches for p in batch)
    assert refused[0].startswith("bad.png: 8 bytes are no image of a known format")
    assert refused[1] == f"{tmp_path / 'nowhere.png'}: cannot be read: No such file or directory"
    assert refused[2].startswith(f"{tmp_path}: there is no image in this folder (.jpg,")


def test_only_some_batches_are_held():
    taken = count()
    endless = (Source(f"{next(taken)}", data) for data in iter(encoded, None))
    batches = picture_batches(endless, 16, 3, pytest.fail)
    next(batches)
    batches.close()
    assert next(taken) <= 9


def test_a_name_that_is_no_text_can_be_printed(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_bytes(encoded())
    assert read_picture(Source(str(path)), 8).name.endswith("\ufffd.png")
    with pytest.raises(DataError, match="gif: cannot be read"):
        read_picture(Source(str(tmp_path / os.fsdecode(b"\xff.gif"))), 8)
