"""A stage: once, whole, and never twice at the same time."""

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from blip.errors import BlipError, DataError
from blip.files import atomic_file, digest_json, read_json, write_text
from blip.stage import (
    CHANGES,
    MANIFEST,
    RECORD,
    Job,
    Part,
    Provenance,
    input_digest,
    read_manifest,
    run_part,
    run_stage,
    stage_key,
)
from blip.tracker import read_journal


def job(folder: Path, **changes: object) -> Job:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "data").write_text("one")
    fields = {
        "verb": "toy", "out": folder / "out", "inputs": {"data": (folder / "in",)}, "config": {"x": 1},
        "runs": folder / "runs", **changes,
    }  # fmt: skip
    return Job(**fields)  # type: ignore[arg-type]


def run(toy: Job, text: str = "result") -> bool:
    with run_stage(toy) as stage:
        if stage is None:
            return False
        (stage.out / "result").write_text(text)
    return True


def events(folder: Path) -> list[tuple[str, str | None]]:
    (journal,) = (folder / "runs").glob("toy-*/journal.jsonl")
    return [(event["event"], event.get("status")) for event in read_journal(journal)[0]]


def test_second_call_does_nothing(tmp_path: Path) -> None:
    assert run(job(tmp_path))
    assert not run(job(tmp_path))
    told = ["start", "artifact", "metrics", "end"]
    assert [event for event, _ in events(tmp_path)] == told
    assert events(tmp_path)[-1] == ("end", "FINISHED")


def test_changed_config_or_input_makes_it_anew(tmp_path: Path) -> None:
    assert run(job(tmp_path))
    assert run(job(tmp_path, config={"x": 2}))
    (tmp_path / "in" / "data").write_text("two")
    changed = Job(
        "toy", tmp_path / "out", {"data": (tmp_path / "in",)}, {"x": 2}, tmp_path / "runs"
    )
    assert run(changed)


def test_key_does_not_depend_on_where(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    assert stage_key(job(tmp_path)) == stage_key(job(tmp_path / "elsewhere"))


def test_output_digest_is_the_input_of_the_next_stage(tmp_path: Path) -> None:
    run(job(tmp_path))
    before = input_digest(tmp_path / "out")
    with run_stage(job(tmp_path), force=True) as stage:
        assert stage is not None
        (stage.out / "result").write_text("other")
    assert input_digest(tmp_path / "out") != before


def test_failure_leaves_no_output_but_the_working_state(tmp_path: Path) -> None:
    def fail() -> None:
        with run_stage(job(tmp_path)) as stage:
            assert stage is not None
            (stage.run_dir / "shards").mkdir()
            raise DataError("bad record")

    with pytest.raises(DataError, match="bad record"):
        fail()
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "runs").glob("toy-*/shards"))
    assert events(tmp_path)[-1] == ("end", "FAILED")
    assert run(job(tmp_path))
    assert not list((tmp_path / "runs").glob("toy-*/shards"))


def test_missing_input_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: does not exist: run the stage that makes it, or"):
        run(job(tmp_path, inputs={"data": (tmp_path / "nowhere",)}))


def test_killed_stage_leaves_nothing_and_the_next_goes_on(tmp_path: Path) -> None:
    program = f"""
        import os, signal
        from pathlib import Path
        from blip.stage import Job, run_stage
        folder = Path({str(tmp_path)!r})
        toy = Job("toy", folder / "out", {{"data": (folder / "in",)}}, {{"x": 1}}, folder / "runs")
        with run_stage(toy) as stage:
            (stage.out / "result").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    job(tmp_path)
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert run(job(tmp_path))
    assert (tmp_path / "out" / "result").read_text() == "result"
    assert (tmp_path / "out" / RECORD).is_file()


def test_second_run_at_the_same_time_is_refused(tmp_path: Path) -> None:
    with run_stage(job(tmp_path)) as stage:
        assert stage is not None
        for config in ({"x": 1}, {"x": 2}):
            with pytest.raises(BlipError, match=r"a stage that writes .*out is already running"):
                run(job(tmp_path, config=config))


def test_a_run_elsewhere_with_the_same_output_is_refused(tmp_path: Path) -> None:
    with run_stage(job(tmp_path)) as stage:
        assert stage is not None
        (stage.out / "result").write_text("first")
        with pytest.raises(BlipError, match=r"another process that writes .*out is at work here"):
            run(job(tmp_path, runs=tmp_path / "runs elsewhere"))
    assert (tmp_path / "out" / "result").read_text() == "first"


def test_a_part_keeps_its_work_and_makes_no_output(tmp_path: Path) -> None:
    with run_part(job(tmp_path), Part(1, 3)) as part:
        assert part is not None
        assert (part.part, part.out) == (Part(1, 3), tmp_path / "out")
        write_text(part.run_dir / "shards" / "one", "one")
    assert not (tmp_path / "out").exists()
    assert (part.run_dir / "shards" / "one").exists()
    told, _ = read_journal(part.run_dir / "journal-1-of-3.jsonl")
    assert [event["event"] for event in told] == ["start", "artifact", "metrics", "end"]
    assert (told[2]["step"], told[-1]["status"], told[-1]["output"]) == (1, "FINISHED", None)
    assert run(job(tmp_path))
    assert not (part.run_dir / "shards").exists()
    with run_part(job(tmp_path), Part(1, 3)) as part:
        assert part is None


def test_a_part_whose_stage_is_finished_meanwhile_is_no_failure(tmp_path: Path) -> None:
    def late(finish: bool) -> None:
        with run_part(job(tmp_path, config={"finish": finish}), Part(0, 2)) as part:
            assert part is not None
            (part.run_dir / "shards").mkdir()
            with pytest.raises(DataError), atomic_file(part.run_dir / "shards" / "one"):
                if finish:
                    assert run(part.job)  # removes what is being written
                else:
                    shutil.rmtree(part.run_dir / "shards")
            raise DataError("cannot be written")

    late(finish=True)
    with pytest.raises(DataError, match="cannot be written"):
        late(finish=False)


def test_same_work_for_another_output_waits_its_turn(tmp_path: Path) -> None:
    program = f"""
        from pathlib import Path
        from blip.stage import Job, run_stage
        folder = Path({str(tmp_path)!r})
        inputs = {{"data": (folder / "in",)}}
        with run_stage(Job("toy", folder / "other", inputs, {{"x": 1}}, folder / "runs")) as stage:
            (stage.out / "result").write_text("second")
    """
    with run_stage(job(tmp_path)) as stage:
        assert stage is not None
        other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.0)
        (stage.out / "result").write_text("first")
    assert other.wait(300) == 0
    assert (tmp_path / "other" / "result").read_text() == "second"


def test_manifest_says_where_a_run_comes_from_and_leaves_the_output_alone(tmp_path: Path) -> None:
    changed = Provenance({"code": {"commit": "abc", "changes": "d1"}}, "a line more\n")
    with run_stage(job(tmp_path, provenance=changed, config={"seed": 7})) as stage:
        assert stage is not None
        (stage.out / "result").write_text("one")
        manifest = read_manifest(stage.run_dir)
    run_dir = next((tmp_path / "runs").glob("toy-*"))
    assert manifest == read_json(run_dir / MANIFEST)
    assert manifest["code"] == {"commit": "abc", "changes": "d1"}
    assert (manifest["seed"], manifest["config"]) == (7, digest_json({"seed": 7}))
    assert manifest["inputs"] == {"data": {str(tmp_path / "in"): input_digest(tmp_path / "in")}}
    assert (run_dir / CHANGES).read_text() == "a line more\n"
    journal, _ = read_journal(run_dir / "journal.jsonl")
    assert journal[0]["manifest"] == manifest
    artifacts = [Path(event["path"]).name for event in journal if event["event"] == "artifact"]
    assert artifacts == [MANIFEST, CHANGES]

    before = input_digest(tmp_path / "out")
    other = Provenance({"code": {"commit": "def", "changes": None}})
    with run_stage(job(tmp_path, provenance=other, config={"seed": 7}), force=True) as stage:
        assert stage is not None
        (stage.out / "result").write_text("one")
    assert input_digest(tmp_path / "out") == before
    assert not (run_dir / CHANGES).exists()


def test_input_behind_a_url_has_the_digest_of_its_record_or_manifest(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    with pytest.raises(DataError, match=r"manifest.json: is not there"):
        input_digest(url)
    (tmp_path / "manifest.json").write_text('{"digest": "named"}')
    assert input_digest(url) == "named"
    (tmp_path / RECORD).write_text('{"output": "recorded"}')
    assert input_digest(url) == input_digest(tmp_path) == "recorded"
