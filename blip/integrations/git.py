"""A working tree and its state as git sees it."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from blip.errors import IntegrationError
from blip.integrations import versioning


def snapshot(working_tree: Path) -> str:
    """Give the git tree of tracked files and recorded results as they are; the index stays."""
    index = Path(git(working_tree, "rev-parse", "--path-format=absolute", "--git-path", "index"))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"
        copy.write_bytes(index.read_bytes())
        environment = {"GIT_INDEX_FILE": str(copy)}
        git(working_tree, "add", "--update", environment=environment)
        results = [
            path for path in ("dvc.lock", *reports(working_tree)) if (working_tree / path).exists()
        ]
        if results:
            git(working_tree, "add", "--force", "--", *results, environment=environment)
        return git(working_tree, "write-tree", environment=environment)


def reports(working_tree: Path) -> list[str]:
    """Name the small metrics of all stages, which git keeps."""
    with contextlib.chdir(working_tree):
        return [path for node in versioning.read_graph().values() for path in node.reports]


def archive(working_tree: Path, tree: str) -> bytes:
    """Give the files of a git tree as a tar."""
    command = ["git", "-C", str(working_tree), "archive", "--format=tar", tree]
    return subprocess.run(command, capture_output=True, check=True).stdout


def git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run git in a folder and give what it printed.

    Raises:
        IntegrationError: It refused.
    """
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    if result.returncode:
        raise IntegrationError(f"git {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout.strip()
