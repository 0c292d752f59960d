"""What the docs say about the paper's benchmarks: commands that are there, a stage that DVC reads."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from blip.benchmarks.catalogue import load_catalogue
from blip.benchmarks.published import Places, load_published
from blip.cli import app
from blip.config import load_config, parse_overrides
from blip.integrations.versioning import read_graph
from tests.parse_command import parse_command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/benchmarks-of-the-paper.md").read_text()
README = (ROOT / "README.md").read_text().partition("## Benchmarks")[2].partition("##")[0]
PLACES = Places(data=Path("d"), checkpoints=Path("c"), results=Path("r"))


def test_commands_of_the_tables_are_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BLIP_DATA", "d")
    settings = set()
    for name, evaluation in load_published().evaluations.items():
        found = parse_command(PLACES.words(name, evaluation))
        assert found["checkpoint"].startswith("c/")
        assert found["out"] == Path("r") / name
        settings.add((found["params"], tuple(found["sets"] or ())))
    for params, sets in settings:
        load_config(params, parse_overrides(sets))


def test_commands_of_the_page_are_commands() -> None:
    for name in re.findall(r"`blip evaluate ([a-z-]+)`", PAGE):
        assert CliRunner().invoke(app, ["evaluate", name, "--help"]).exit_code == 0, name
    for block in re.findall(r"```sh\n(.*?)```", PAGE + README, re.DOTALL):
        for line in block.splitlines():
            parse_command(shlex.split(line, comments=True)[1:])
    benchmarks = re.findall(r"\| ((?:`[a-z0-9-]+`(?:, )?)+) \|\n", PAGE)
    named = {name for cell in benchmarks for name in re.findall(r"`([a-z0-9-]+)`", cell)}
    assert named >= {"nocaps", "msvd-qa", "judgments"}
    assert named <= set(load_catalogue().benchmarks)


@pytest.mark.parametrize("group", ["evaluate", "benchmark"])
def test_help_of_a_group_tells_every_command_in_full(group: str) -> None:
    said = CliRunner().invoke(app, [group, "--help"]).output
    commands = said.partition("Commands:")[2].splitlines()[1:]
    assert len(commands) >= 2
    assert not [line for line in commands if line.endswith("...")]


def test_dvc_reads_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a project of its own, with the pinned files upstream."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
    (snippet,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    Path("dvc.yaml").write_text(snippet)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    stage = yaml.safe_load(snippet)["stages"]["coco_retrieval"]
    pinned = [dep for dep in stage["deps"] if dep.startswith("paper/")]
    for place in pinned:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text("x")
        subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", place], check=True)
    node = read_graph()["coco_retrieval"]
    assert set(node.upstream) == {f"{place}.dvc" for place in pinned}
    assert node.command is not None
    found = parse_command(node.command.split()[1:])
    assert [str(found["out"])] == [out for out in node.outs if out not in node.reports]
    assert [str(found["metrics"])] == list(node.reports)
    files = load_catalogue().files
    assert all(place.removeprefix("paper/") in files for place in pinned)
    assert all((ROOT / dep).exists() for dep in node.deps if not dep.startswith("paper/"))
