"""Files are whole or absent, whatever happens to their writer."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import BlipError, DataError
from blip.files import (
    atomic_directory,
    atomic_file,
    digest_directory,
    digest_json,
    lock,
    new_directory,
    read_json,
    write_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(st.dictionaries(st.text(), JSON))
def test_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert digest_json(value) == digest_json(dict(reversed(list(value.items()))))


def test_names_of_files_need_not_be_text(tmp_path: Path) -> None:
    digests = set()
    for name in (b"caf\xe9", b"caf\xe8", b"caf\xc3\xa9"):
        folder = tmp_path / str(len(digests))
        folder.mkdir()
        (folder / os.fsdecode(name)).write_text("x")
        digests.add(digest_directory(folder))
    assert len(digests) == 3


def test_json_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    write_json(tmp_path / "b.json", {"a": "é", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": "é", "b": 1}


def test_failed_writer_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_of_two_writers_of_a_new_directory_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with new_directory(path) as first, new_directory(path) as second:
        assert first != second
        (first / "name").write_text("first")
        (second / "name").write_text("second")
    assert (path / "name").read_text() == "second"  # which left its context before the other
    assert names(tmp_path) == ["new"]
    with pytest.raises(RuntimeError), new_directory(tmp_path / "failed") as folder:
        (folder / "name").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["new"]
    path.joinpath("file").write_text("")
    with pytest.raises(DataError, match="file: cannot be written"), new_directory(path / "file"):
        pass


def test_failed_writer_leaves_the_old_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_directory(out) as folder:
        (folder / "a").write_text("old")
    before = digest_directory(out)
    with pytest.raises(RuntimeError), atomic_directory(out) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert digest_directory(out) == before
    assert names(tmp_path) == ["out"]


def test_killed_writer_leaves_the_old_directory_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = f"""
        import os, signal
        from pathlib import Path
        from blip.files import atomic_directory
        with atomic_directory(Path({str(out)!r})) as folder:
            (folder / "a").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    with atomic_directory(out) as folder:
        assert list(folder.iterdir()) == []
        (folder / "b").write_text("whole")
    assert names(tmp_path) == ["out"]
    assert names(out) == ["b"]


def test_full_disk_is_one_error_and_nothing_is_left(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(DataError, match="cannot be written"),
            atomic_file(tmp_path / "f") as file,
        ):
            file.write(b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == []


def test_lock_refuses_a_second_holder_and_names_the_first(tmp_path: Path) -> None:
    program = f"""
        from pathlib import Path
        from blip.errors import BlipError
        from blip.files import lock
        try:
            with lock(Path({str(tmp_path / "lock")!r}), "the work"):
                print("entered")
        except BlipError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with lock(tmp_path / "lock", "the work"):
        refused = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    entered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"the work is already running (process {os.getpid()})" in refused
    assert entered == "entered\n"


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_bad_json_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BlipError, match=r"x\.json"):
        read_json(path)
