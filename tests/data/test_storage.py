"""Dataset versions behind a URL: copies that are whole, bounded, shared, and what happens when the store fails."""

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from blip import remote
from blip.data import storage
from blip.errors import ConfigError, DataError
from blip.files import digest_file
from blip.remote import MissingError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.01)


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(storage.FOLDER, str(tmp_path / "copies"))
    return tmp_path / "copies"


def put(folder: Path, name: str, size: int) -> tuple[str, str]:
    """Write a file; give its URL and digest."""
    (folder / name).write_bytes(name.encode() * (size // len(name)))
    return f"file://{folder}/{name}", digest_file(folder / name)


def fetch(url: str, digest: str, room: storage.Room | None = None) -> Path:
    path = storage.place(digest, ".tar")
    storage.fetch(url, path, digest, room)
    return path


def test_urls_are_told_from_paths_and_joined() -> None:
    assert remote.parse_place("s3://bucket/datasets/web/") == "s3://bucket/datasets/web"
    assert remote.parse_place("datasets/web") == Path("datasets/web")
    assert (
        remote.join("s3://b/datasets/new", "../web/images/1.tar")
        == "s3://b/datasets/web/images/1.tar"
    )
    assert remote.join("memory://web", "manifest.json") == "memory://web/manifest.json"


def test_a_copy_is_fetched_once_and_mended_when_damaged(tmp_path: Path, copies: Path) -> None:
    url, digest = put(tmp_path, "a", 100)
    path = fetch(url, digest)
    assert path.parent == copies
    (tmp_path / "a").unlink()
    assert fetch(url, digest).read_bytes() == b"a" * 100
    put(tmp_path, "a", 100)
    path.write_bytes(b"short")
    assert fetch(url, digest).read_bytes() == b"a" * 100
    assert {file.name for file in copies.iterdir()} == {path.name, "locks"}


def test_what_is_missing_or_of_unknown_kind_is_said_at_once(tmp_path: Path, copies: Path) -> None:
    with pytest.raises(MissingError, match=r"none: is not there: upload it"):
        fetch(f"file://{tmp_path}/none", "0" * 64)
    with pytest.raises(DataError, match="nonsense://x: "):
        remote.read_url("nonsense://x")


def test_tampered_and_cut_short(
    tmp_path: Path, copies: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, digest = put(tmp_path, "a", 100)
    (tmp_path / "a").write_bytes(b"a" * 99)
    with pytest.raises(DataError, match=r"/a: failed 5 times: its digest .* tampered .*cut short"):
        fetch(url, digest)
    assert len([r for r in caplog.records if "trying again" in r.message]) == 4
    assert not [file for file in copies.iterdir() if file.is_file()]


def test_a_store_that_fails_now_and_then_is_asked_again(
    tmp_path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, digest = put(tmp_path, "a", 100)
    files = type(fsspec.filesystem("file"))
    whole, calls = files.get_file, []

    def flaky(self: object, source: str, target: str, **options: object) -> None:
        calls.append(source)
        if len(calls) == 1:
            raise ConnectionResetError("gone")
        whole(self, source, target, **options)
        if len(calls) == 2:
            os.truncate(target, 50)

    monkeypatch.setattr(files, "get_file", flaky)
    assert fetch(url, digest).read_bytes() == b"a" * 100
    assert len(calls) == 3


def test_copies_take_no_more_than_their_room(
    tmp_path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(storage.LIMIT, "250e-9")
    room = storage.Room()
    files = [put(tmp_path, name, 100) for name in "abcd"]
    paths = [storage.place(digest, ".tar") for _, digest in files]
    for number, file in enumerate(files[:2]):
        fetch(*file, room)
        os.utime(paths[number], (number, number))
    fetch(*files[0], room)  # used again: b is the one that was not used for longest
    fetch(*files[2], room)
    assert [path.exists() for path in paths] == [True, False, True, False]
    room.needed = paths[:1]
    fetch(*files[3], room)
    assert [path.exists() for path in paths] == [True, False, False, True]
    room.needed = paths
    with pytest.raises(DataError, match=r"300 bytes of image shards are needed .*CACHE_GB 2.5e-07"):
        fetch(*files[1], room)
    monkeypatch.setenv(storage.LIMIT, "much")
    with pytest.raises(ConfigError, match="BLIP_SHARD_CACHE_GB=much: must be a number"):
        storage.Room()


def test_threads_that_want_one_file_fetch_it_once(
    tmp_path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, digest = put(tmp_path, "a", 100)
    calls: list[str] = []
    download = remote.download

    def counted(url: str, target: Path, check: Callable[[], None]) -> None:
        calls.append(url)
        download(url, target, check)

    monkeypatch.setattr(remote, "download", counted)
    threads = [threading.Thread(target=fetch, args=(url, digest)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_killed_while_fetching(tmp_path: Path, copies: Path) -> None:
    url, digest = put(tmp_path, "a", 100)
    script = f"""
import os, signal
from pathlib import Path
from blip import remote
from blip.data import storage
def half(url, target, check):
    target.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
remote.download = half
storage.fetch({url!r}, storage.place({digest!r}, ".tar"), {digest!r})
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert fetch(url, digest).read_bytes() == b"a" * 100
    assert not list(copies.glob("*.partial"))


def test_full_disk(tmp_path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, digest = put(tmp_path, "a", 100)
    copies.mkdir()
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(
        shutil, "copyfile", lambda source, target, **_: full.write_bytes(Path(source).read_bytes())
    )
    with pytest.raises(DataError, match="No space left on device"):
        fetch(url, digest)


def test_s3(bucket: Path) -> None:
    (bucket / "web").mkdir()
    put(bucket, "web/a", 1000)
    digest = digest_file(bucket / "web/a")
    assert remote.size_of("s3://bucket/web/a") == 1000 // 5 * 5
    assert fetch("s3://bucket/web/a", digest).read_bytes() == remote.read_url("s3://bucket/web/a")
    with pytest.raises(MissingError, match="s3://bucket/web/b: is not there"):
        remote.read_url("s3://bucket/web/b")
    (bucket / "web/a").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="s3://bucket/web/a: failed 5 times: its digest"):
        fetch("s3://bucket/web/a", "0" * 64)


def test_s3_refuses(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    try:
        with pytest.raises(DataError, match=r"access is refused .*check the credentials"):
            remote.read_url("s3://bucket/a")
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_each_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="blip.remote"), pytest.raises(DataError):
        remote.attempt("memory://x", lambda *_: (_ for _ in ()).throw(OSError("away")))
    assert "memory://x: away; trying again in 0.0 s" in caplog.text
