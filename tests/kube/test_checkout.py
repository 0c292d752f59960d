"""The checkout on the workspace volume follows the image, and loses nothing that people or runs made."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "k8s/base/checkout.sh"


class Workspace:
    """A workspace and the project of the image that is rolled out."""

    def __init__(self, folder: Path) -> None:
        self.root, self.project = folder / "workspace", folder / "project"
        self.root.mkdir()
        (self.project / ".dvc").mkdir(parents=True)
        (self.project / ".gitignore").write_text("/datasets/\n")
        (self.project / ".dvc/config").write_text("[core]\n")
        (self.project / "dvc.yaml").write_text("stages: {}\n")
        (self.project / "params.yaml").write_text("a: 1\nb: 1\nc: 1\nd: 1\ne: 1\n")

    def roll_out(self) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PROJECT": str(self.project)}
        command = ["sh", str(SCRIPT), str(self.root)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=me", "-c", "user.email=me@here", *arguments]
        return subprocess.run(
            command, cwd=self.root, capture_output=True, text=True, check=True
        ).stdout.strip()

    def set(self, place: Path, old: str, new: str) -> None:
        file = place / "params.yaml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    result = workspace.roll_out()
    assert result.returncode == 0, result.stderr
    return workspace


def test_a_fresh_volume_becomes_a_clean_checkout(workspace: Workspace) -> None:
    assert (workspace.root / "dvc.yaml").read_text() == "stages: {}\n"
    assert "url = s3://dvc" in (workspace.root / ".dvc/config.local").read_text()
    head = workspace.git("rev-parse", "HEAD")
    assert "has this image's project" in workspace.roll_out().stdout
    assert workspace.git("rev-parse", "HEAD") == head


def test_an_upgrade_keeps_results_and_other_changes(workspace: Workspace) -> None:
    (workspace.root / "dvc.lock").write_text("results\n")
    (workspace.root / "datasets").mkdir()
    workspace.set(workspace.root, "a: 1", "a: 2")
    workspace.git("commit", "--all", "--message", "mine")
    (workspace.project / "dvc.yaml").unlink()
    (workspace.project / "new.py").write_text("NEW = True\n")
    workspace.set(workspace.project, "e: 1", "e: 3")
    assert workspace.roll_out().returncode == 0
    assert (workspace.root / "params.yaml").read_text() == "a: 2\nb: 1\nc: 1\nd: 1\ne: 3\n"
    assert (workspace.root / "new.py").exists()
    assert not (workspace.root / "dvc.yaml").exists()
    assert (workspace.root / "dvc.lock").read_text() == "results\n"
    assert (workspace.root / "datasets").is_dir()


@pytest.mark.parametrize("committed", [False, True])
def test_where_both_changed_the_same_nothing_is_done(workspace: Workspace, committed: bool) -> None:
    workspace.set(workspace.root, "a: 1", "a: 2")
    if committed:
        workspace.git("commit", "--all", "--message", "mine")
    workspace.set(workspace.project, "a: 1", "a: 3")
    (workspace.project / "new.py").write_text("NEW = True\n")
    for _ in range(2):
        result = workspace.roll_out()
        assert result.returncode == 2
        assert "commit or take back" in result.stderr
        assert (workspace.root / "params.yaml").read_text().startswith("a: 2\n")
        assert not (workspace.root / "new.py").exists()
    workspace.git("checkout", "refs/heads/image", "--", "params.yaml")  # take it back
    if committed:
        workspace.git("commit", "--all", "--message", "taken back")
    assert workspace.roll_out().returncode == 0
    assert (workspace.root / "params.yaml").read_text().startswith("a: 3\n")
