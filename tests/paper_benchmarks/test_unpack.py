"""Archives: unpacked whole or not at all, and nothing outside of their folder."""

import contextlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from blip.benchmarks import unpack as unpacking
from blip.benchmarks.unpack import unpack
from blip.errors import DataError


def write_zip(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return path


def test_a_folder_of_the_name_at_any_depth(tmp_path: Path) -> None:
    names = {"data__val2014__1.jpg": "one", "data__val2014__2.jpg": "two", "data__README": "read"}
    archive = write_zip(tmp_path / "val2014.zip", **names)
    unpack(archive, tmp_path / "val2014")
    assert sorted(path.name for path in (tmp_path / "val2014").iterdir()) == ["1.jpg", "2.jpg"]
    assert [path.name for path in tmp_path.glob(".*.partial")] == []
    (tmp_path / "val2014/1.jpg").write_text("mine")
    unpack(archive, tmp_path / "val2014")
    assert (tmp_path / "val2014/1.jpg").read_text() == "mine"


def test_a_file_and_an_archive_without_the_name(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "ovad.zip", ovad__a="1", **{"ovad__ovad2000.json": "{}"})
    unpack(archive, tmp_path / "ovad2000.json")
    assert (tmp_path / "ovad2000.json").read_text() == "{}"
    unpack(archive, tmp_path / "test_50k")
    assert (tmp_path / "test_50k/ovad/a").read_text() == "1"


def test_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "clips.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("clips/empty.avi"))
    unpack(tmp_path / "clips.tar", tmp_path / "clips")
    assert (tmp_path / "clips/empty.avi").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    archive = write_zip(folder / "bad.zip", **{name: "x"})
    with pytest.raises(DataError, match=r"no plain path below it: do not trust"):
        unpack(archive, folder / "out")
    with tarfile.open(folder / "bad.tar", "w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    with contextlib.suppress(DataError):  # a leading slash is only dropped
        unpack(folder / "bad.tar", folder / "out")
    assert not (tmp_path / "outside").exists()
    assert not Path("/tmp/outside").exists()


def test_damage(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", **{f"a__{i}": str(i) * 1000 for i in range(9)})
    content = bytearray(archive.read_bytes())
    content[2000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"a.zip: cannot be unpacked: Bad CRC-32.*fetch it again"):
        unpack(archive, tmp_path / "a")
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"b.zip: cannot be unpacked"):
        unpack(tmp_path / "b.zip", tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert list(tmp_path.glob(".*.partial")) == []


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_zip(tmp_path / "a.zip", a="x" * 1000)
    room = unpacking.shutil.disk_usage(tmp_path)._replace(free=999)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: room)
    with pytest.raises(DataError, match=r"needs 1,000 bytes unpacked, .* has 999"):
        unpack(archive, tmp_path / "a")
