"""The image: it builds, runs as nobody in particular on a root that nothing can write, and rebuilds quickly."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from blip.config import PRESETS, read_yaml
from tests.kube import images

pytestmark = pytest.mark.kube

LIMIT = 3.5e9  # bytes; 2.72e9 measured, of which torch, pyarrow and their kind are 2.4e9


def run(image: str, image_folder: Path, script: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script in the image as the pods run it."""
    command = ["podman", "run", "--rm", "--network", "none", "--read-only"]
    command += ["--read-only-tmpfs=false", "--tmpfs", "/tmp:mode=1777", "--user", "1000:1000"]
    command += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", image]
    return subprocess.run(
        [*command, "sh", "-ec", script],
        env=images.environment(image_folder),
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_runs_a_stage_as_nobody_on_a_root_that_cannot_be_written(
    image: str, image_folder: Path
) -> None:
    config = read_yaml(PRESETS / "demo.yaml")
    config["world"].update(web=30, human=10, test=10)
    params = yaml.safe_dump(config)
    result = run(
        image,
        image_folder,
        f"""
        mkdir work; sh /opt/project/k8s/base/checkout.sh work >/dev/null; cd work
        cat >params.yaml <<'X'\n{params}\nX
        id -u; if touch /opt/venv/x 2>/dev/null; then exit 9; fi; blip --help >help; grep -c pretrain help
        blip world data
        blip ingest web --out datasets/web
        git --version; dvc --version
        command -v gcc cc uv || true
        find / -xdev -name '*.env' -path '*secrets*' 2>/dev/null || true
        """,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[0] == "1000"
    assert "git version" in result.stdout
    assert not [
        line for line in result.stdout.splitlines() if line.startswith("/")
    ]  # secrets, tools
    assert images.size(image, image_folder) < LIMIT


def test_a_change_of_code_leaves_the_layer_of_packages(
    image: str, image_folder: Path, tmp_path: Path
) -> None:
    context = tmp_path / "project"
    shutil.copytree(
        images.ROOT,
        context,
        ignore=shutil.ignore_patterns(".venv", ".git", "tests", "runs", "secrets", ".*_cache"),
    )
    (context / "blip" / "news.py").write_text("NEWS = True\n")
    tag = "localhost/blip-changed:test"
    try:
        began = time.monotonic()
        said = images.build(context, image_folder, tag)
        took = time.monotonic() - began
        install = said.index("uv pip install --python")
        assert "--> Using cache" in said[install : install + 700], said
        sys.stdout.write(f"built again after a change of code in {took:.0f} s\n")
        result = run(tag, image_folder, "python -c 'from blip.news import NEWS; print(NEWS)'")
        assert result.stdout.strip() == "True", result.stderr
    finally:
        subprocess.run(
            ["buildah", "rmi", "--force", tag],
            env=images.environment(image_folder),
            stdout=subprocess.DEVNULL,
            check=False,
        )
