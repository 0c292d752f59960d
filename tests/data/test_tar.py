"""Tars that depend on their members alone, and tars of others."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.data.tar import TarWriter, index_tar
from blip.errors import DataError

MEMBERS = {"a.png": b"first", "folder/b.jpg": b"x" * 1024, "empty": b""}


def write(path: Path, members: dict[str, bytes]) -> str:
    with TarWriter(path) as tar:
        for name, data in members.items():
            offset = tar.add(name, data)
            assert offset % 512 == 0
    return tar.digest


def test_written_tar_is_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    digest = write(path, MEMBERS)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with tarfile.open(path) as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == MEMBERS  # type: ignore[union-attr]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_bytes_are_pinned(tmp_path: Path) -> None:
    assert write(tmp_path / "t.tar", MEMBERS)[:16] == "c826acc929a2b784"


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=8).filter(lambda n: n.strip(".")),
        st.binary(max_size=1500),
    )
)
def test_index_finds_every_member(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes]
) -> None:
    path = tmp_path_factory.mktemp("tar") / "t.tar"
    write(path, members)
    content = path.read_bytes()
    found = {name: content[o : o + size] for name, (o, size) in index_tar(path).items()}
    assert found == members


def test_links_and_folders_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("link", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("d", tarfile.DIRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("./a.png")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    assert list(index_tar(path)) == ["a.png"]


@pytest.mark.parametrize(
    "keep", [100, 700, 1536, 2100, 4000]
)  # within headers and bytes, and between members
def test_tar_cut_short(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "t.tar"
    write(path, MEMBERS | {"last": b"y" * 600})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"t\.tar: .*cut short"):
        index_tar(path)


def test_what_lies_behind_damage_is_not_lost_unseen(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    write(path, MEMBERS)
    whole = path.read_bytes()
    header = 2 * 512 + 100  # of the second member
    path.write_bytes(whole[:header] + b"\x01" + whole[header + 1 :])
    with pytest.raises(DataError, match=r"t\.tar: is damaged or cut short at byte 1024"):
        index_tar(path)
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match="several tars in one"):
        index_tar(path)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_others(tmp_path: Path, form: int) -> None:
    path = tmp_path / "t.tar"
    members = {"x" * 90: b"1", "y/" * 60 + "z": b"2"}
    if form != tarfile.USTAR_FORMAT:
        members["n" * 300] = b"3"
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    content = path.read_bytes()
    assert {n: content[o : o + size] for n, (o, size) in index_tar(path).items()} == members


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b" + bytes(2000)])
def test_no_tar(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.tar: "):
        index_tar(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        index_tar(tmp_path / "none.tar")
