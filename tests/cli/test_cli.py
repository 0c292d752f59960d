"""The command: quick to answer, clear about errors, the right exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blip.cli import app
from tests.cli.conftest import Project

HEAVY = (
    "torch",
    "pyarrow",
    "numpy",
    "mlflow",
    "sqlalchemy",
    "great_expectations",
    "dvc",
    "kubernetes",
    "prefect",
)
COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from blip.cli import app;"
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0;"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_verb_explains_itself(command: str) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("ingest web --out datasets/web --params nowhere.yaml", "nowhere.yaml: cannot be read"),
        (
            "ingest dogs --out datasets/dogs",
            "ingest.sources has no 'dogs'; it has human, test, web",
        ),
        (
            "ingest web --out datasets/web --set ingest.shard_sise=3",
            "did you mean 'ingest.shard_size'?",
        ),
        (
            "select --data datasets/scored --out datasets/b",
            "datasets/scored: does not exist: run the stage",
        ),
        (
            "evaluate retrieval --data test.json --checkpoint models/x --out results/x",
            "models/x: does not exist",
        ),
        ("lineage", "takes an image, a text or --model"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    project: Project, verb: str, message: str
) -> None:
    printed = project.run(verb, code=2)
    assert message in printed
    assert "Traceback" not in printed


def test_ingest_reports_and_does_nothing_twice(project: Project) -> None:
    project.run("ingest human --out datasets/human --metrics reports/human.json")
    assert json.loads((project.path / "reports/human.json").read_text())["ingest"]["images"] == 12
    before = {p: p.stat().st_mtime_ns for p in (project.path / "datasets").rglob("*")}
    assert "is up to date" in project.run("ingest human --out datasets/human")
    assert before == {p: p.stat().st_mtime_ns for p in (project.path / "datasets").rglob("*")}


def test_manifest_of_an_output(project: Project) -> None:
    project.run("ingest human --out datasets/human")
    manifest = json.loads(project.run("manifest datasets/human"))
    assert manifest["stage"] == "ingest-human"
    assert manifest["output"] == "datasets/human"
    assert manifest["inputs"].keys() == {"source"}
    assert manifest["machine"]["python"]
    assert "name a folder below runs/" in project.run("manifest datasets", code=2)


def test_lineage_of_an_ingested_image(project: Project) -> None:
    project.run("ingest human --out datasets/human")
    tree = project.run("lineage human-000003.png")
    assert "human-000003.png" in tree
    answer = json.loads(project.run("lineage human-000003.png --json"))
    assert answer["images"][0]["texts"][0]["origin"] == "human"
    assert "human" in project.run("catalog stats") or Path(project.path / "catalog.db").is_file()
