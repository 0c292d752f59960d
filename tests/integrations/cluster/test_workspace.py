"""A pod's working state, kept in a bucket: whole or absent, and there for the pod that goes on."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from blip.integrations.cluster import workspace


@pytest.fixture
def pod(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace of a pod."""
    (tmp_path / "pod").mkdir()
    monkeypatch.chdir(tmp_path / "pod")
    return bucket / "dvc/blip/runs/key/stage.tar"


def kept(part: str | None = None) -> Any:
    return workspace._Kept("s3://bucket/dvc", "key", part)


def write(name: str, text: str) -> Path:
    file = Path("runs/pretrain-1") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_the_next_pod_begins_with_what_the_last_one_left(pod: Path) -> None:
    with pytest.raises(RuntimeError), kept().through():
        write("step-10", "weights")
        write("empty", "")
        raise RuntimeError  # its command was killed
    shutil.rmtree("runs")
    state = kept()
    with state.through():
        assert Path("runs/pretrain-1/step-10").read_text() == "weights"
        assert Path("runs/pretrain-1/empty").read_text() == ""
    assert pod.exists()
    state.forget()
    assert not pod.exists()
    assert not list(Path().glob(".runs-*"))


def test_a_stage_begins_with_what_all_its_parts_left(pod: Path) -> None:
    for part in ("0", "1"):
        with kept(part).through():
            assert not Path("runs").exists()  # other parts have nothing to do with it
            write(f"shard-{part}", part)
        shutil.rmtree("runs")
    with kept("1").through():
        assert [path.name for path in Path("runs/pretrain-1").iterdir()] == ["shard-1"]
    state = kept()
    with state.through():
        assert Path("runs/pretrain-1/shard-0").read_text() == "0"
        assert Path("runs/pretrain-1/shard-1").read_text() == "1"
    state.forget()
    assert not list(pod.parent.glob("*"))


def test_a_pod_that_vanishes_has_kept_its_last_checkpoint(pod: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(workspace, "KEEP_SECONDS", 0.1)
    with kept().through():
        write("step-10", "weights")
        deadline = time.monotonic() + 300
        while not pod.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        vanished = pod.with_name("vanished.tar")
        shutil.copy(pod, vanished)
        file = write("step-20", "more")
        while b"step-20" not in pod.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        file.unlink()
    shutil.copy(vanished, pod)
    shutil.rmtree("runs")
    with kept().through():
        assert [path.name for path in Path("runs/pretrain-1").iterdir()] == ["step-10"]


def test_folders_that_vanish_while_they_are_looked_into_are_no_error(
    pod: Path, monkeypatch: Any
) -> None:
    """As a checkpoint that takes its name: the look fails, and the next one is the right one."""

    def vanish(*_: Any) -> None:
        raise FileNotFoundError

    state = kept()
    with state.through():
        write("step-10", "weights")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rglob", vanish)
            state._keep()
        assert not pod.exists()
    assert pod.exists()


def test_nothing_is_sent_while_only_the_journal_grows(pod: Path) -> None:
    with kept().through():
        write("journal.jsonl", "{}")
    assert not pod.exists()


def test_a_bucket_that_is_away_does_not_end_the_stage(
    pod: Path, monkeypatch: Any, capsys: Any
) -> None:
    state = kept()
    with state.through():
        write("step-10", "weights")
        monkeypatch.setattr(state, "_url", "s3://absent/runs/key/stage.tar")
    assert "could not be kept" in capsys.readouterr().err
