"""Images by untrusted names: in a folder, and in a tar."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from blip.data.image_store import ImageStore, is_safe
from blip.data.tar import TarWriter
from blip.errors import DataError


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a.png", True),
        ("d/é b.png", True),
        ("./a.png", True),
        ("/etc/passwd", False),
        ("../a.png", False),
        ("d/../../a.png", False),
        ("..\\a.png", False),
        ("a\0.png", False),
        ("a\n.png", False),
        ("\ud800.png", False),
        ("", False),
        (".", False),
        ("x" * 2000, False),
    ],
)
def test_safe_names(name: str, safe: bool) -> None:
    assert is_safe(name) is safe


def folder(path: Path) -> Path:
    (path / "images" / "d").mkdir(parents=True)
    (path / "images" / "a.png").write_bytes(b"first")
    (path / "images" / "d" / "b.png").write_bytes(b"second")
    (path / "secret").write_bytes(b"secret")
    return path / "images"


def tar(path: Path) -> Path:
    with TarWriter(path / "images.tar") as writer:
        writer.add("a.png", b"first")
        writer.add("d/b.png", b"second")
    return path / "images.tar"


@pytest.mark.parametrize("make", [folder, tar])
def test_image_store(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with ImageStore(make(tmp_path)) as store:
        assert store.read("d/b.png") == b"second"
        assert store.read("./a.png") == b"first"
        assert store.read("none.png") is None
        assert store.read("d") is None
        with pytest.raises(ValueError, match="not a plain relative path"):
            store.read("../secret")


def test_links_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    images = folder(tmp_path)
    (images / "out.png").symlink_to(tmp_path / "secret")
    (images / "in.png").symlink_to(images / "a.png")
    (tmp_path / "link").symlink_to(images)
    with ImageStore(tmp_path / "link") as store:
        assert store.read("in.png") == b"first"
        with pytest.raises(ValueError, match="link out of the folder"):
            store.read("out.png")


def test_a_link_to_itself_and_a_name_too_long_lead_to_no_image(tmp_path: Path) -> None:
    images = folder(tmp_path)
    (images / "round.png").symlink_to(images / "round.png")
    with ImageStore(images) as store:
        assert store.read("round.png") is None
        assert store.read("x" * 300 + ".png") is None


def test_missing_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        ImageStore(tmp_path / "none.tar")


def test_link_in_a_tar_is_no_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with ImageStore(tmp_path / "t.tar") as store:
        assert store.read("a.png") is None
