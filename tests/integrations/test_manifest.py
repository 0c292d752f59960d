"""The manifest: a real git repository, its changes, and what MLflow and DVC add later."""

import subprocess
from pathlib import Path

import pytest

from blip.errors import DataError
from blip.files import digest_file, digest_json, write_json
from blip.integrations.manifest import load_manifest, provenance
from blip.stage import Job, run_stage

DVC_LOCK = """
schema: '2.0'
stages:
  ingest@web:
    outs:
    - path: datasets/web
      md5: 0123.dir
  pretrain@web:
    outs:
    - path: models/web
      md5: 4567.dir
"""


def git(*arguments: str) -> str:
    own = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *own, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("blip/a.py", "params.yaml", "requirements.lock", "dvc.lock", "reports/x.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("one\n")
    Path("dvc.lock").write_text(DVC_LOCK)
    Path(".gitignore").write_text("/runs\n/models\nignored.py\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "First")
    return tmp_path


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    found = provenance([Path("datasets/web"), Path("elsewhere")])
    assert found.facts["code"] == {"commit": git("rev-parse", "HEAD"), "changes": None}
    assert found.changes == ""
    assert found.facts["lock"] == digest_file(Path("requirements.lock"))
    assert found.facts["dvc"] == {"datasets/web": "0123.dir"}
    machine = found.facts["machine"]
    assert all(machine[name] for name in ("cpu", "python", "torch", "system"))


def test_changes_bring_the_sources_back(checkout: Path) -> None:
    Path("params.yaml").write_text("two\n")
    Path("blip/new.py").write_text("new\n")
    Path("staged.py").write_text("staged\n")
    Path("ignored.py").write_text("ignored\n")
    Path("notes.txt").write_text("mine\n")
    Path("dvc.lock").write_text(DVC_LOCK + "\n")
    Path("reports/x.json").write_text("written by a stage\n")
    git("add", "staged.py")
    status = git("status", "--porcelain")
    found = provenance()
    assert git("status", "--porcelain") == status  # the user's index is as before
    assert found.facts["code"]["changes"] == digest_json(found.changes)
    assert "written by a stage" not in found.changes
    assert "notes.txt" not in found.changes
    Path("changes.diff").write_text(found.changes)
    git("clone", "-q", ".", "copy")
    git("-C", "copy", "apply", str(checkout / "changes.diff"))
    for name in ("params.yaml", "blip/new.py", "staged.py"):
        assert Path("copy", name).read_text() == Path(name).read_text()
    assert provenance().changes == found.changes


def test_more_new_files_than_a_command_line_holds(checkout: Path) -> None:
    folder = checkout / "/".join(["x" * 250] * 4)
    folder.mkdir(parents=True)
    for number in range(2200):
        (folder / f"{number}.py").touch()
    assert provenance().changes.count("new file mode") == 2200


def test_a_lock_file_in_a_merge_is_one_message(checkout: Path) -> None:
    Path("dvc.lock").write_text("<<<<<<< HEAD\nstages: {}\n=======\n")
    with pytest.raises(DataError, match=r"dvc\.lock: cannot be read .* finish a merge"):
        provenance([Path("datasets/web")])


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert not provenance().facts["code"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not provenance().facts["code"]


def test_a_manifest_is_found_from_run_checkpoint_and_output(checkout: Path) -> None:
    job = Job("pretrain", Path("models/web"), {}, {"seed": 3}, provenance=provenance())
    with run_stage(job) as stage:
        assert stage is not None
        run_dir = stage.run_dir
        (stage.out / "weights").touch()
    manifest = load_manifest(run_dir)
    assert manifest["seed"] == 3
    assert manifest["code"]["commit"] == git("rev-parse", "HEAD")
    assert manifest["mlflow_run"] is None
    entry = {"outs": [{"path": "models/web", "md5": "4567.dir"}]}
    assert manifest["dvc_stage"] == {"name": "pretrain@web", "entry": digest_json(entry)}

    write_json(run_dir / "shipped.json", {"run_id": "r1"})
    assert load_manifest(Path("models/web")) == {**manifest, "mlflow_run": "r1"}

    checkpoint = run_dir / "checkpoints/step-00000003"
    about = {"code": {"commit": "earlier"}, "output": "models/web"}
    write_json(checkpoint / "state.json", {"step": 3, "about": about})
    found = load_manifest(checkpoint)
    assert (found["code"], found["mlflow_run"]) == ({"commit": "earlier"}, "r1")


def test_no_manifest_is_one_message(checkout: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no manifest\.json: name a folder below runs/"):
        load_manifest(Path("nowhere"))
