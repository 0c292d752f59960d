"""`blip reproduce`: what becomes of a row, and real tiny evaluations from end to end."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from blip.benchmarks.catalogue import Catalogue, load_catalogue
from blip.benchmarks.published import Places, Published, load_published
from blip.benchmarks.reproduce import Outcome, reproduce
from blip.benchmarks.reproduction_page import lay_out, to_html, to_markdown
from blip.errors import ConfigError, DataError
from blip.files import read_json, write_json
from tests.tiny_benchmark import write_model, write_params, write_test_set

ROOT = Path(__file__).parents[2]
RETRIEVAL = (
    "evaluate retrieval --checkpoint {checkpoints}/matcher --data {data}/coco/test.json "
    "--photos {data}/coco"
)
CAPTIONING = RETRIEVAL.replace("retrieval", "captioning").replace("matcher", "writer")


def table(**rows: dict[str, Any]) -> dict[str, Any]:
    words = {
        "title": "Toy",
        "metrics": "a / b",
        "source": "nowhere",
        "tolerance": 0.3,
        "why": "toy",
    }
    return {**words, "rows": {name: {"model": name, **row} for name, row in rows.items()}}


def documents(
    evaluations: dict[str, Any], rows: dict[str, dict[str, Any]]
) -> tuple[Published, Catalogue]:
    obtain = {"purpose": "toy", "licence": "free", "obtain": "make it"}
    places = ["coco/test.json", "coco/val2014", "coco/more", "checkpoints/matcher",
              "checkpoints/writer"]  # fmt: skip
    catalogue = {
        "files": {place: obtain for place in places},
        "benchmarks": {"toy": {"title": "Toy", "files": places}},
    }
    published = {"evaluations": evaluations, "tables": {"toy": table(**rows)}}
    return Published.model_validate(published), Catalogue.model_validate(catalogue)


def finish(folder: Path, metrics: dict[str, Any]) -> None:
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "stage.json", {})


def by_name(outcomes: list[Outcome]) -> dict[str, tuple[str, str]]:
    return {outcome.name: (outcome.state, outcome.detail) for outcome in outcomes}


def test_states_of_finished_and_waiting_rows(tmp_path: Path) -> None:
    evaluations = {name: {"command": RETRIEVAL} for name in ("near", "far", "half", "none")}
    evaluations["server"] = {"command": RETRIEVAL, "server": "EvalAI"}
    two = {"toy/a": 80.0, "toy/b": 14.0}
    rows = {name: {"evaluation": name, "values": two} for name in evaluations}
    published, catalogue = documents(evaluations, rows)
    places = Places(data=tmp_path, checkpoints=tmp_path / "checkpoints", results=tmp_path / "r")
    finish(tmp_path / "r/near", {"toy": {"a": {"value": 80.3, "low": 1, "high": 2}, "b": 13.7}})
    finish(tmp_path / "r/far", {"toy": {"a": {"value": 80.0}, "b": 14.31}})
    finish(tmp_path / "r/half", {"toy": {"a": {"value": 80.0}, "b": None}})
    finish(tmp_path / "r/server", {})
    outcomes = reproduce(published, catalogue, places)
    assert by_name(outcomes) == {
        "near": ("reproduced", ""),
        "far": ("differs", "toy/b"),
        "half": ("incomplete", f"no toy/b in {tmp_path / 'r/half'}"),
        "none": ("waiting", "checkpoints/matcher, coco/test.json"),
        "server": ("submitted", f"{tmp_path / 'r/server'} goes to EvalAI"),
    }
    assert outcomes[3].ours == [None, None]
    page = to_markdown(lay_out(outcomes, published, catalogue, places), "Words.")
    assert "| near | a / b | 80.0 / 14.0 | 80.3 / 13.7 | +0.3 / -0.3 | reproduced |" in page
    assert "| half | a / b | 80.0 / 14.0 | 80.0 / \N{EN DASH} | +0.0 / \N{EN DASH} |" in page
    assert "| `coco/test.json` | toy | ? | make it |" in page
    html = to_html(lay_out(outcomes, published, catalogue, places), "Words & <more>")
    assert "<code>checkpoints/matcher</code>" in html
    assert "Words &amp; &lt;more&gt;" in html


def test_a_row_that_is_not_there(tmp_path: Path) -> None:
    published, catalogue = documents({"a": {"command": "x"}}, {})
    places = Places(data=tmp_path, checkpoints=tmp_path, results=tmp_path)
    with pytest.raises(ConfigError, match="there is no row 'b'"):
        reproduce(published, catalogue, places, ["b"])


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    published, catalogue = documents({"a": {"command": "manifest nothing"}}, {})
    (tmp_path / "results").write_text("a file")
    places = Places(data=tmp_path, checkpoints=tmp_path, results=tmp_path / "results")
    with pytest.raises(DataError, match=r"results/a\.log: cannot be written: "):
        reproduce(published, catalogue, places)


def test_the_page_in_the_docs_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands where nothing has been fetched; `blip reproduce --out docs/reproduce.md` writes it."""
    from blip.cli.benchmarks import INTRO

    monkeypatch.chdir(tmp_path)
    (tmp_path / "blip").symlink_to(ROOT / "blip")
    published, catalogue = load_published(), load_catalogue()
    places = Places(
        data=Path("paper"), checkpoints=Path("paper/checkpoints"), results=Path("paper/results")
    )
    outcomes = reproduce(published, catalogue, places)
    assert {outcome.state for outcome in outcomes} == {"waiting"}
    page = to_markdown(lay_out(outcomes, published, catalogue, places), INTRO)
    assert page == (ROOT / "docs/reproduce.md").read_text()


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    """A project with a tiny benchmark, a matcher, and a captioner that is no captioner."""
    config = write_params(tmp_path)
    write_test_set(tmp_path / "paper/coco")
    write_model(config, "matching", tmp_path / "paper/checkpoints/matcher")
    shutil.copytree(tmp_path / "paper/checkpoints/matcher", tmp_path / "paper/checkpoints/writer")
    return tmp_path


def run(folder: Path, *options: str, code: int) -> str:
    command = [sys.executable, "-m", "blip", "reproduce", "--out", "page.md", *options]
    command += ["--table", "published.yaml", "--catalogue", "files.yaml"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "BLIP_TRACKING": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.slow
def test_real_evaluations_from_end_to_end(paper: Path) -> None:
    evaluations = {
        "match": {"command": RETRIEVAL, "needs": ["coco/val2014"]},
        "write": {"command": CAPTIONING},
        "more": {"command": RETRIEVAL, "needs": ["coco/more"]},
    }
    values = {"retrieval/tr_r1": 50.0, "retrieval/ir_r1": 101.0}
    rows = {name: {"evaluation": name, "values": values} for name in evaluations}
    published, catalogue = documents(evaluations, rows)
    for name, document in (("published", published), ("files", catalogue)):
        plain = document.model_dump(mode="json", exclude_none=True)
        (paper / f"{name}.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))

    said = run(paper, code=2)
    assert "failed: write: page.md says why" in said
    page = (paper / "page.md").read_text()
    found = read_json(paper / "paper/results/match/metrics.json")["retrieval"]
    ours = " / ".join(f"{found[name]['value']:.1f}" for name in ("tr_r1", "ir_r1"))
    assert f"| match | a / b | 50.0 / 101.0 | {ours} |" in page
    assert "differs: " in page
    assert "failed: paper/checkpoints/writer: holds a model for 'matching', but captioning" in page
    assert "waiting for `coco/more`" in page

    before = (paper / "paper/results/match/stage.json").stat().st_mtime_ns
    exact = {f"retrieval/{name}": found[name]["value"] for name in ("tr_r1", "ir_r1")}
    document = published.model_dump(mode="json", exclude_none=True)
    document["tables"]["toy"]["rows"]["match"]["values"] = exact
    (paper / "published.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    run(paper, "--only", "match", "--out", "page.html", code=0)
    assert (paper / "paper/results/match/stage.json").stat().st_mtime_ns == before
    page = (paper / "page.html").read_text()
    assert "1 reproduced" in page
    assert "1 due" in page  # the one that failed is not run, and its error is not kept
