"""Experiments in worktrees of their own: what they carry, share, save and leave alone."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import dvc.api
import pytest

from blip.config import read_yaml
from blip.errors import BlipError, ConfigError, IntegrationError
from blip.integrations import sharing, versioning
from blip.integrations.experiment import open_experiment, run_experiment
from blip.integrations.runner import Outcome

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # pygtrie within DVC


def quiet(*_: Any) -> None:
    pass


def run(toy: Any, **options: Any) -> dict[str, str]:
    outcomes, code = run_experiment(toy.root, say=quiet, done=quiet, slots=2, **options)
    assert code == 0
    return {outcome.name: outcome.state for outcome in outcomes}


def test_overrides_run_in_a_worktree_that_shares_the_cache_and_leave_the_checkout_alone(
    finished_toy: Any,
) -> None:
    before = Path("params.yaml").read_bytes(), Path("dvc.lock").read_bytes()
    states = run(finished_toy, overrides={"capfilt.threshold": 0.123})
    assert finished_toy.began() == ["select"]
    assert states["prepare"] == states["train@left"] == "cached"
    assert (Path("params.yaml").read_bytes(), Path("dvc.lock").read_bytes()) == before
    (workspace,) = (p for p in Path(".blip/experiments").iterdir() if p.is_dir())
    assert workspace.name.startswith("demo-")
    assert read_yaml(workspace / "params.yaml")["capfilt"]["threshold"] == 0.123
    assert (workspace / "runs").resolve() == (finished_toy.root / "runs").resolve()
    assert workspace.name in saved_experiments(finished_toy)
    assert git(finished_toy, "status", "--porcelain").split() == [
        "??",
        "dvc.lock",
        "??",
        "reports/",
    ]
    (saved,) = [row for row in dvc.api.exp_show() if row["Experiment"] == workspace.name]
    assert saved["reports/train_left.json:inputs"] == 1
    assert saved["capfilt.threshold"] == 0.123

    assert set(run(finished_toy, overrides={"capfilt.threshold": 0.123}).values()) == {"cached"}
    assert finished_toy.began() == []


def test_a_name_or_a_preset_alone_makes_an_experiment(toy: Any) -> None:
    with open_experiment(toy.root, name="mine") as experiment:
        assert experiment.name.startswith("mine-")
        assert Path.cwd() == experiment.workspace
    assert Path.cwd() == toy.root
    with open_experiment(toy.root, preset="demo") as experiment:
        assert experiment.own_workspace
    with (
        pytest.raises(ConfigError, match=r"no preset 'dmeo'; there are .*demo"),
        open_experiment(toy.root, preset="dmeo"),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"capfilt\.treshold.*did you mean 'capfilt.threshold'"),
        open_experiment(toy.root, overrides={"capfilt.treshold": 1}),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"threshold: .*less than or equal to 1"),
        open_experiment(toy.root, overrides={"capfilt.threshold": 7}),
    ):
        pass


def test_local_settings_of_dvc_hold_in_the_worktree(toy: Any) -> None:
    Path(".dvc/config.local").write_text("['remote \"mine\"']\n    url = s3://bucket\n")
    with open_experiment(toy.root, name="mine"):
        text = Path(".dvc/config.local").read_text()
    assert "s3://bucket" in text
    assert f"dir = {toy.root}/.dvc/cache" in text


def test_uncommitted_changes_of_tracked_files_are_carried_and_a_later_one_updates_the_worktree(
    toy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (toy.root / "raw/words").write_text("changed\n")
    (toy.root / "new.py").write_text("untracked\n")
    with open_experiment(toy.root, name="mine") as experiment:
        assert Path("raw/words").read_text() == "changed\n"
        assert not Path("new.py").exists()
        place = experiment.workspace
    assert "git does not track them" in caplog.text
    assert "new.py" in caplog.text
    assert git(toy, "status", "--porcelain").split() == ["M", "raw/words", "??", "new.py"]
    git(toy, "commit", "-qam", "change")
    (toy.root / "raw/words").unlink()
    with open_experiment(toy.root, name="mine") as experiment:
        assert experiment.workspace == place
        assert not Path("raw/words").exists()


@pytest.mark.slow
def test_two_experiments_at_once_do_not_meet_and_equal_stages_are_computed_once(toy: Any) -> None:
    toy.order(prepare={"sleep": 1.0})
    script = (
        "import pathlib, sys; from blip.integrations.experiment import run_experiment\n"
        "overrides = {'capfilt.threshold': float(sys.argv[1])}\n"
        "_, code = run_experiment(pathlib.Path.cwd(), overrides=overrides, slots=1,"
        " say=lambda *_: None, done=lambda _: None)\n"
        "sys.exit(code)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", script, value]) for value in ("0.3", "0.4")]
    assert [process.wait(300) for process in runs] == [0, 0]
    began = toy.began()
    assert began.count("prepare") == began.count("train_left") == began.count("train_right") == 1
    assert began.count("select") == 2
    assert len(saved_experiments(toy)) == 2


def test_the_same_experiment_is_not_run_twice_at_once(toy: Any) -> None:
    with (
        open_experiment(toy.root),
        pytest.raises(BlipError, match=r"experiment demo-.* is already running"),
        open_experiment(toy.root),
    ):
        pass


def test_files_of_the_users_own_are_found_from_the_worktree(toy: Any) -> None:
    (toy.root / "mine").mkdir()
    (toy.root / "mine/web.json").write_text("[]")
    with open_experiment(
        toy.root,
        overrides={
            "ingest.sources.web.annotations": "mine/web.json",
            "ingest.sources.web.images": "raw",
        },
    ) as experiment:
        web = experiment.config.ingest.sources["web"]
        assert web.annotations == str(toy.root / "mine/web.json")
        assert web.images == "raw"  # git brings it


def test_without_a_commit_there_is_a_remedy(toy: Any) -> None:
    shutil.rmtree(toy.root / ".git")
    with (
        pytest.raises(IntegrationError, match=r"no git repository with a commit.*git init"),
        open_experiment(toy.root, name="mine"),
    ):
        pass


def test_a_failed_experiment_is_not_saved(toy: Any) -> None:
    toy.order(select={"exit": 2})
    _, code = run_experiment(toy.root, name="mine", say=quiet, done=quiet)
    assert code == 2
    assert saved_experiments(toy) == []
    toy.order()
    run(toy, name="mine")
    assert [name for name in saved_experiments(toy) if name.startswith("mine-")]


def test_results_pushed_to_a_remote_are_restored_in_a_clone_without_lock_or_reports(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IntegrationError, match="dvc remote add -d"):
        run(toy, share=True)
    remote = tmp_path / "remote"
    with (toy.root / ".dvc/config").open("a") as config:
        config.write(f"    remote = shared\n['remote \"shared\"']\n    url = {remote}\n")
    git(toy, "commit", "-qam", "remote")
    run(toy, share=True)
    assert len(toy.began()) == 5
    assert sharing.push(["select"]) == 0
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(toy.root), str(clone)], check=True)
    monkeypatch.chdir(clone)
    outcomes, _ = run_experiment(clone, say=quiet, done=quiet, share=True)
    assert {o.state for o in outcomes} == {"restored"}
    assert toy.began() == []
    assert (clone / "out/finish/text").read_text() == (toy.root / "out/finish/text").read_text()
    assert (clone / "reports/train_left.json").exists()


def test_threads_that_record_at_once_lose_nothing(toy: Any) -> None:
    stages = "".join(
        f"  s{i}: {{cmd: python step.py s{i} out/s{i} raw, deps: [raw], outs: [out/s{i}]}}\n"
        for i in range(6)
    )
    Path("dvc.yaml").write_text("stages:\n" + stages)
    assert set(run_all(toy, 6)) == {"ran"}
    assert versioning.survey()[1] == set()


def run_all(toy: Any, slots: int) -> list[str]:
    done: list[Outcome] = []
    threads: set[str] = set()

    def say(name: str, line: str) -> None:
        threads.add(threading.current_thread().name)

    run_experiment(toy.root, say=say, done=done.append, slots=slots)
    return [o.state for o in done]


def saved_experiments(toy: Any) -> list[str]:
    refs = git(toy, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return [ref.split("/")[-1] for ref in refs if not ref.startswith("refs/exps/exec")]


def git(toy: Any, *arguments: str) -> str:
    who = ["-c", "user.name=toy", "-c", "user.email=toy@localhost"]
    command = ["git", *who, "-C", str(toy.root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
