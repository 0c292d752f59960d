"""Captions and scores by parts: the bytes of the whole, whoever did which shard, whatever happened."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.capfilt import caption, score
from blip.config import dump_config
from blip.errors import ConfigError
from blip.files import digest_directory
from blip.stage import Part, share
from blip.tracker import NullTracker, read_journal

Work = Callable[[Path, Path, Part | None], None]
"""Fills an output, or does a part, with a folder for what is finished."""


@given(st.integers(0, 40), st.integers(1, 50))
def test_parts_partition_the_shards(num_shards: int, count: int) -> None:
    parts = [share(num_shards, Part(index, count)) for index in range(count)]
    assert sorted(i for part in parts for i in part) == list(share(num_shards, None))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    "text", ["", "3", "1/", "/2", "2/2", "0/0", "-1/2", "1.0/2", "1/2/3", "a/b"]
)
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--part .*: must be I/N with I from 0 to N - 1"):
        Part.parse(text)


def test_a_part_is_written_as_it_is_read() -> None:
    assert Part.parse("2/8") == Part(2, 8)
    assert str(Part(2, 8)) == "2/8"


@pytest.fixture(params=["caption", "score"])
def work(request: pytest.FixtureRequest, demo) -> Work:
    def do(out: Path, run_dir: Path, part: Part | None) -> None:
        if request.param == "caption":
            caption(demo.config, demo.captioner, demo.web, out, run_dir, NullTracker(), part)
        else:
            score(demo.config, demo.filter, [demo.web], out, run_dir, NullTracker(), part)

    return do


def make(demo, name: str) -> Path:
    """Make an output at the depth at which all lie, since manifests name images by relative paths."""
    out = demo.web.parent / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return out


@pytest.mark.parametrize("count", [1, 2, 3, 7])  # of three shards
def test_parts_make_the_bytes_of_the_whole(demo, work: Work, count: int, tmp_path: Path) -> None:
    whole, nothing, out = (make(demo, name) for name in ("whole", "nothing", "by_parts"))
    work(whole, tmp_path / "whole", None)
    for index in reversed(range(count)):
        work(nothing, tmp_path / "run", Part(index, count))
    assert not list(nothing.iterdir())
    tables = sorted((tmp_path / "run/shards").iterdir())
    assert [table.name for table in tables] == [f"{i:06}.parquet" for i in range(3)]
    times = [table.stat().st_mtime_ns for table in tables]
    work(out, tmp_path / "run", None)
    assert [table.stat().st_mtime_ns for table in tables] == times
    assert digest_directory(out) == digest_directory(whole)


def test_the_whole_does_what_a_part_left_undone(demo, work: Work, tmp_path: Path) -> None:
    whole, out = make(demo, "whole"), make(demo, "by_parts")
    work(whole, tmp_path / "whole", None)
    work(out, tmp_path / "run", Part(1, 2))
    assert [t.name for t in (tmp_path / "run/shards").iterdir()] == ["000001.parquet"]
    work(out, tmp_path / "run", None)
    assert digest_directory(out) == digest_directory(whole)


PROGRAM = """
    import json, os, signal, sys
    from pathlib import Path
    from blip.capfilt import caption, versions
    from blip.config import Config
    from blip.stage import Job, Part, run_part, run_stage

    document, folder, out, part, deadly = sys.argv[1:]
    folder = Path(folder)

    class Parquet:
        read_table, calls = staticmethod(versions.pq.read_table), 0
        def write_table(self, table, file):
            Parquet.calls += 1
            if Parquet.calls == int(deadly):
                file.write(b"PAR1half")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            parquet.write_table(table, file)

    parquet, versions.pq = versions.pq, Parquet()
    config, model, data = Config.model_validate(json.loads(document)), *map(Path, [MODEL, DATA])
    job = Job("caption", Path(out), {"data": (data,)}, {}, folder / "runs")
    running = run_part(job, Part.parse(part)) if part else run_stage(job)
    with running as stage:
        if stage:
            caption(config, model, data, stage.out, stage.run_dir, stage.journal, stage.part)
"""


def start(demo, folder: Path, part: str = "", deadly: int = 0) -> "subprocess.Popen[bytes]":
    places = f"MODEL, DATA = {str(demo.captioner)!r}, {str(demo.web)!r}\n"
    program = places + textwrap.dedent(PROGRAM)
    document, out = json.dumps(dump_config(demo.config)), demo.web.parent / "together"
    line = [sys.executable, "-c", program, document, str(folder), str(out), part, str(deadly)]
    return subprocess.Popen(line)


def test_parts_are_killed_and_run_at_once(demo, tmp_path: Path) -> None:
    whole, out = make(demo, "whole"), demo.web.parent / "together"
    shutil.rmtree(out, ignore_errors=True)
    caption(demo.config, demo.captioner, demo.web, whole, tmp_path / "whole", NullTracker())

    # Killed while it writes the second of its two shards: that one alone is done again.
    assert start(demo, tmp_path, "0/2", deadly=2).wait() == -signal.SIGKILL
    (run_dir,) = (tmp_path / "runs").glob("caption-*")
    first = run_dir / "shards/000000.parquet"
    written = first.stat().st_mtime_ns
    assert [t.name for t in run_dir.glob("shards/*.parquet")] == ["000000.parquet"]

    # Both parts at once, one of them twice, as where a lost machine comes back.
    parts = [start(demo, tmp_path, part) for part in ("0/2", "1/2", "0/2")]
    assert [process.wait() for process in parts] == [0, 0, 0]
    assert first.stat().st_mtime_ns == written
    assert not out.exists()
    assert {p.name for p in run_dir.glob("journal*")} == {
        "journal-0-of-2.jsonl",
        "journal-1-of-2.jsonl",
    }

    # The whole and a part that comes late do not disturb one another.
    processes = [start(demo, tmp_path), start(demo, tmp_path, "1/3")]
    assert [process.wait() for process in processes] == [0, 0]
    assert digest_directory(out, frozenset({"stage.json"})) == digest_directory(whole)
    ends = [read_journal(path)[0][-1] for path in run_dir.glob("journal*")]
    assert {end["status"] for end in ends} == {"FINISHED"}

    # There is nothing left to do for anybody.
    before = sorted(run_dir.rglob("*"))
    assert start(demo, tmp_path, "1/2").wait() == 0
    assert sorted(run_dir.rglob("*")) == before
