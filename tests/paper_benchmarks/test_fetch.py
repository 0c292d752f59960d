"""Downloads: resumed, verified, whole or absent, whatever the server and the disk do."""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.benchmarks import fetch as fetching
from blip.benchmarks.catalogue import BenchmarkFile
from blip.benchmarks.fetch import RECORD, fetch, read_records
from blip.errors import BlipError, DataError
from blip.files import write_json

from .web_server import Site, serve

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
PLACE = "coco/val.zip"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSE", 0.0)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site(files={"/val.zip": CONTENT})) as running:
        yield running


def described(site: Site, **known: object) -> BenchmarkFile:
    entry = {"purpose": "photos", "licence": "free", "url": f"{site.address}/val.zip", **known}
    return BenchmarkFile.model_validate(entry)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("coco/.*"))


def test_a_file_arrives_and_is_recorded(site: Site, tmp_path: Path) -> None:
    record = fetch(PLACE, described(site), tmp_path)
    assert (tmp_path / PLACE).read_bytes() == CONTENT
    assert read_records(tmp_path) == {PLACE: record}
    assert (record.size, record.sha256) == (len(CONTENT), SHA256)
    assert left_over(tmp_path) == []
    assert fetch(PLACE, described(site), tmp_path) == record
    assert site.log == [""]  # asked once


def test_broken_answers_are_continued(site: Site, tmp_path: Path) -> None:
    site.orders = ["cut 100000", "cut 100000", "503", "cut 250000", "429"]
    fetch(PLACE, described(site, size=len(CONTENT), sha256=SHA256, md5=MD5), tmp_path)
    assert (tmp_path / PLACE).read_bytes() == CONTENT
    assert site.log == ["", *["bytes=100000-"] * 3, *["bytes=250000-"] * 2]


@settings(max_examples=30)
@given(
    cuts=st.lists(st.integers(0, len(CONTENT) - 1), max_size=4),
    etag=st.sampled_from(['"one"', None]),
    ranges=st.booleans(),
    known=st.sampled_from([{}, {"md5": MD5}]),
)
def test_however_often_it_breaks_the_bytes_are_right(
    cuts: list[int], etag: str | None, ranges: bool, known: dict[str, object]
) -> None:
    broken = Site({"/val.zip": CONTENT}, etag, ranges, [f"cut {cut}" for cut in cuts])
    with tempfile.TemporaryDirectory() as folder, serve(broken) as site:
        fetch(PLACE, described(site, **known), Path(folder))
        assert (Path(folder) / PLACE).read_bytes() == CONTENT


def test_a_part_of_another_file_is_not_continued(site: Site, tmp_path: Path) -> None:
    site.orders = ["cut 100000", *["403"]]
    with pytest.raises(DataError, match="refused"):
        fetch(PLACE, described(site), tmp_path)
    assert left_over(tmp_path) == [".val.zip.part", ".val.zip.part.json"]
    site.files["/val.zip"], site.etag = CONTENT[::-1], '"two"'
    fetch(PLACE, described(site), tmp_path)
    assert (tmp_path / PLACE).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_proof_it_begins_anew(site: Site, tmp_path: Path, etag: str | None) -> None:
    site.etag, site.orders = etag, ["cut 100000"]
    fetch(PLACE, described(site), tmp_path)
    assert site.log == ["", ""]
    assert (tmp_path / PLACE).read_bytes() == CONTENT


def test_a_checksum_is_proof_enough(site: Site, tmp_path: Path) -> None:
    site.etag, site.orders = None, ["cut 100000"]
    fetch(PLACE, described(site, md5=MD5), tmp_path)
    assert site.log == ["", "bytes=100000-"]
    assert (tmp_path / PLACE).read_bytes() == CONTENT


def test_a_server_without_ranges(site: Site, tmp_path: Path) -> None:
    site.ranges, site.orders = False, ["cut 100000"]
    fetch(PLACE, described(site, sha256=SHA256), tmp_path)
    assert (tmp_path / PLACE).read_bytes() == CONTENT


def test_a_part_that_was_whole_when_the_client_died(site: Site, tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/.val.zip.part").write_bytes(CONTENT)
    write_json(tmp_path / "coco/.val.zip.part.json", {"etag": '"one"', "modified": None})
    fetch(PLACE, described(site), tmp_path)
    assert site.log == [f"bytes={len(CONTENT)}-"]
    assert (tmp_path / PLACE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"sha256": "0" * 64}, f"sha256 is {SHA256}, the catalogue gives 000"),
        ({"md5": "0" * 32}, f"md5 is {MD5}, the catalogue gives 000"),
        ({"size": 5}, "size is 300000, the catalogue gives 5"),
    ],
)
def test_other_content_is_refused_and_not_kept(
    site: Site, tmp_path: Path, known: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fetch(PLACE, described(site, **known), tmp_path)
    assert not (tmp_path / PLACE).exists()
    assert left_over(tmp_path) == []
    assert read_records(tmp_path) == {}


def test_a_source_that_changed_since_the_first_time(site: Site, tmp_path: Path) -> None:
    fetch(PLACE, described(site), tmp_path)
    (tmp_path / PLACE).unlink()
    site.files["/val.zip"] = CONTENT[::-1]
    with pytest.raises(DataError, match=r"fetched.json has from the first time.*it is not kept"):
        fetch(PLACE, described(site), tmp_path)
    (tmp_path / PLACE).write_bytes(b"spoilt")
    with pytest.raises(DataError, match=r"another file than the one that is meant.*: remove it"):
        fetch(PLACE, described(site), tmp_path)
    assert (tmp_path / PLACE).read_bytes() == b"spoilt"  # what is in its place is never removed


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("403", r"access is refused \(403\): ask the authors"),
        ("401", r"access is refused \(401\)"),
        ("404", r"is not there \(404\): ask the authors"),
        ("418", r"the server answers 418"),
        ("text/html", r"sent a page instead of the file.*: ask the authors"),
    ],
)
def test_a_refusal_is_one_message_at_once(
    site: Site, tmp_path: Path, order: str, message: str
) -> None:
    site.orders = [order]
    with pytest.raises(DataError, match=message):
        fetch(PLACE, described(site, obtain="ask the authors"), tmp_path)
    assert len(site.log) == 1
    assert not (tmp_path / PLACE).exists()


def test_a_server_that_hangs_is_asked_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT", 0.1)
    site.orders = ["hang"]
    fetch(PLACE, described(site), tmp_path)
    (tmp_path / PLACE).unlink()
    site.orders = ["hang"] * 5
    with pytest.raises(DataError, match=r"failed 5 times: timed out: 0 bytes are kept"):
        fetch(PLACE, described(site), tmp_path)


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    with serve(Site()) as site:
        pass
    with pytest.raises(DataError, match=r"failed 5 times: .*refused: 0 bytes are kept"):
        fetch(PLACE, described(site), tmp_path)


def test_a_server_that_dies_in_the_middle(tmp_path: Path) -> None:
    with serve(Site(files={"/val.zip": CONTENT})) as site:
        site.orders = ["cut 100000", *["503"] * 20]
        with pytest.raises(DataError, match=r"failed 5 times: .*503.*: 100,000 bytes are kept"):
            fetch(PLACE, described(site), tmp_path)
        site.orders = []
        fetch(PLACE, described(site), tmp_path)
        assert site.log[-1] == "bytes=100000-"
    assert (tmp_path / PLACE).read_bytes() == CONTENT


def test_a_full_disk(site: Site, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # as a quota
    try:
        with pytest.raises(DataError, match=r"cannot be written: File too large: 100,000 bytes"):
            fetch(PLACE, described(site), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    fetch(PLACE, described(site), tmp_path)
    assert site.log == ["", "bytes=100000-"]


def test_no_room_is_said_before(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = fetching.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: room)
    with pytest.raises(DataError, match=r"has room for 1,000 bytes, the file needs 300,000 more"):
        fetch(PLACE, described(site), tmp_path)


def test_a_folder_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/\.locks: cannot be made: Not a directory"):
        fetch(PLACE, described(site), tmp_path / "file")
    (tmp_path / "coco").symlink_to("a disk that is not there")
    with pytest.raises(DataError, match=r"coco: cannot be made: File exists"):
        fetch(PLACE, described(site), tmp_path)


def test_two_at_once_are_not(site: Site, tmp_path: Path) -> None:
    site.pause = 0.1  # until the second one is refused
    thread = threading.Thread(target=fetch, args=(PLACE, described(site), tmp_path))
    thread.start()
    while not site.log:
        time.sleep(0.01)
    with pytest.raises(BlipError, match=r"fetching .*val.zip is already running"):
        fetch(PLACE, described(site), tmp_path)
    site.pause = 0.0
    thread.join()
    assert (tmp_path / PLACE).read_bytes() == CONTENT


def test_a_spoilt_record_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text('{"a": {"size": 3}}')
    with pytest.raises(DataError, match=r"fetched.json: is not what"):
        fetch(PLACE, described(site), tmp_path)


def test_a_client_that_is_killed_goes_on(site: Site, tmp_path: Path) -> None:
    """The command itself, killed in the middle: the next one asks for the rest alone."""
    entry = described(site, sha256=SHA256).model_dump(exclude_none=True)
    document = {"files": {PLACE: entry}, "benchmarks": {"coco": {"title": "x", "files": [PLACE]}}}
    (tmp_path / "files.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "blip", "benchmark", "fetch", "coco", "--out", "there"]
    command += ["--catalogue", "files.yaml"]
    site.pause = 0.02
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ}, stderr=subprocess.PIPE)
    part = tmp_path / "there/coco/.val.zip.part"
    while not (part.exists() and part.stat().st_size > 20_000):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept, site.pause = part.stat().st_size, 0.0
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert site.log == ["", f"bytes={kept}-"]
    assert (tmp_path / "there" / PLACE).read_bytes() == CONTENT
    assert f"there/{PLACE}: 300,000 bytes, sha256 {SHA256[:12]}, outside of a DVC" in done.stdout
