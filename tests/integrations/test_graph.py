"""The project's own dvc.yaml: each stage depends on the code and the parameters that it uses."""

import ast
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from blip.config import load_config, merge, read_yaml
from blip.integrations import versioning
from blip.integrations.launch import LocalLauncher
from blip.integrations.runner import Run, plan, run_plan
from blip.integrations.versioning import Node

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # pygtrie within DVC

ROOT = Path(__file__).parents[2]

CODE = {  # what a stage runs
    "ingest": "blip/data/ingest.py",
    "validate": "blip/integrations/quality",
    "tokenizer": "blip/data/text.py",
    "pretrain": "blip/train/run.py",
    "finetune": "blip/train/run.py",
    "caption": "blip/capfilt/captioning.py",
    "score": "blip/capfilt/scoring.py",
    "select": "blip/capfilt/selection.py",
    "evaluate@human_retrieval": "blip/evaluate/retrieval.py",
    "evaluate@human_captioning": "blip/evaluate/captioning.py",
    "evaluate_filter": "blip/evaluate/filter.py",
    "compare": "blip/evaluate/compare.py",
    "promote": "blip/integrations/registry",
    "report": "blip/report",
}

MODEL = (  # imported, but not run, by stages that read results
    "blip/batch.py",
    "blip/data/dataset.py",
    "blip/data/images.py",
    "blip/data/loader.py",
    "blip/data/order.py",
    "blip/data/pictures.py",
    "blip/data/shards.py",
    "blip/data/text.py",
    "blip/data/transforms.py",
    "blip/distributed.py",
    "blip/inference.py",
    "blip/models",
    "blip/objectives",
)
READERS = ("compare", "promote", "report")

PLUMBING = (  # carries results without having a part in them
    "blip/__init__.py",
    "blip/compat.py",
    "blip/config.py",
    "blip/errors.py",
    "blip/files.py",
    "blip/hub.py",
    "blip/log.py",
    "blip/progress.py",
    "blip/remote.py",
    "blip/stage.py",
    "blip/tracker.py",
    "blip/capfilt/__init__.py",
    "blip/data/__init__.py",
    "blip/data/storage.py",
    "blip/evaluate/__init__.py",
    "blip/integrations/__init__.py",
    "blip/integrations/catalog",
    "blip/integrations/settings.py",
    "blip/integrations/tracking",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project without its results, so that a test may change it."""
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Node]:
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    with contextlib.chdir(root):
        return versioning.read_graph()


def copy_project(root: Path) -> None:
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", "mlflow.yaml"):
        shutil.copy(ROOT / name, root / name)
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")


def test_the_graph_holds_together_and_runs_verbs(graph: dict[str, Node]) -> None:
    assert len(graph) >= 29
    done: set[str] = set()
    for node in graph.values():
        assert done.issuperset(node.upstream), f"{node.name} comes before what it needs"
        done.add(node.name)
        assert node.command is None or node.command.startswith("blip ")
        assert node.description


def test_every_stage_of_training_waits_for_the_gate(graph: dict[str, Node]) -> None:
    for name, node in graph.items():
        if name.startswith(("pretrain@", "finetune@")):
            assert "validate" in node.upstream


def test_a_parameter_reaches_the_stages_that_use_it_and_no_other(graph: dict[str, Node]) -> None:
    def users(key: str) -> set[str]:
        return {name.split("@")[0] for name, node in graph.items() if reads(node.params, key)}

    assert users("capfilt.threshold") == {"select", "evaluate_filter", "report"}
    assert users("capfilt.decoding.top_p") == {"caption"}
    assert users("evaluate.k") == {"evaluate", "evaluate_filter", "report"}
    assert users("pretrain.steps") == {"pretrain"}
    assert users("finetune.captioning.steps") == {"finetune", "evaluate"}
    assert users("model.embed_size") == {"pretrain"}
    assert users("validate.max_count_drift") == {"validate"}
    assert users("tokenizer.size") == {"tokenizer"}
    assert users("ingest.min_side") == {"ingest"}
    assert users("threads") == {"pretrain", "finetune", "caption", "score", "evaluate"}
    after_select = {
        "pretrain@bootstrapped",
        "finetune@captioning_bootstrapped",
        "compare@human",
        "report",
    }
    assert below(graph, "select") >= after_select
    assert not below(graph, "select") & {
        "caption",
        "score",
        "pretrain@unfiltered",
        "evaluate@human_retrieval",
    }


def reads(keys: tuple[str, ...], key: str) -> bool:
    return any(key == known or key.startswith(f"{known}.") for known in keys)


def below(graph: dict[str, Node], name: str) -> set[str]:
    found = {name}
    for node in graph.values():
        if found.intersection(node.upstream):
            found.add(node.name)
    return found


def test_every_key_of_the_configuration_reaches_a_stage(graph: dict[str, Node]) -> None:
    used = tuple(key for node in graph.values() for key in node.params)
    document = load_config(ROOT / "params.yaml").model_dump(
        by_alias=True, exclude={"name", "world"}
    )
    unused = [key for key in leaves(document) if not reads(used, key)]
    assert unused == ["finetune.vqa", "finetune.nlvr"]  # tasks that the demo does not have
    assert load_config(ROOT / "params.yaml").finetune.vqa is None


def leaves(node: object, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(
                value, f"{prefix}{key}." if isinstance(value, dict) else f"{prefix}{key}"
            )
    else:
        yield prefix


@pytest.mark.parametrize("stage", CODE)
def test_a_stage_depends_on_the_code_that_it_runs(
    stage: str, graph: dict[str, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    node = next(node for name, node in graph.items() if stage in (name, name.split("@")[0]))
    paths = (*node.deps, *MODEL) if stage in READERS else node.deps
    assert [str(file) for file in closure(Path(CODE[stage])) if not covered(file, paths)] == []


def covered(file: Path, paths: tuple[str, ...]) -> bool:
    return any(file.is_relative_to(path) for path in (*PLUMBING, *paths))


def closure(start: Path) -> list[Path]:
    """Give the files that importing a module of the package reaches."""
    todo = sorted(start.rglob("*.py")) if start.is_dir() else [start]
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        if file not in seen and not covered(file, ()):
            seen.add(file)
            todo += imports(file)
    return sorted(seen)


def imports(file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            path = Path(*name.split("."))
            for candidate in (path.with_suffix(".py"), path / "__init__.py"):
                if name.startswith("blip") and candidate.exists():
                    yield candidate


STUB = """#!/bin/sh
# Stands in for `blip`: writes what it was asked for, different whenever the parameters are.
while [ $# -gt 0 ]; do
  case $1 in
    --out)
      mkdir -p "$2"
      for file in result manifest.json passed.json metrics.json curves.csv; do
        cksum < params.yaml > "$2/$file"
      done
      shift ;;
    --metrics) mkdir -p reports; echo '{}' > "$2"; shift ;;
    report) mkdir -p reports; cksum < params.yaml > reports/report.html ;;
  esac
  shift
done
"""


@pytest.mark.slow
def test_a_new_threshold_runs_select_and_what_follows_and_nothing_runs_twice(
    project: Path, graph: dict[str, Node]
) -> None:
    shutil.copytree(ROOT / "blip", "blip", ignore=shutil.ignore_patterns("__pycache__"))
    Path("data").mkdir()
    for name in ("web", "human", "test"):
        Path(f"data/{name}.json").write_text("[]")
        Path(f"data/{name}.tar").write_text("")
    stub = project / "bin" / "blip"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    assert set(run_with(stub).values()) == {"ran"}
    began = time.process_time()
    assert set(run_with(stub).values()) == {"cached"}
    assert time.process_time() - began < 10  # measured: 0.6 s
    params = Path("params.yaml")
    text, document = params.read_text(), read_yaml(params)
    params.write_text(yaml.safe_dump(merge(document, {"capfilt.threshold": 0.123}, params)))
    again = run_with(stub)
    ran = {name for name, state in again.items() if state == "ran"}
    assert ran == below(graph, "select") | {"evaluate_filter"}
    params.write_text(text)
    assert set(run_with(stub).values()) == {"cached", "restored"}


def run_with(stub: Path) -> dict[str, str]:
    environment = {**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}"}
    run = Run(LocalLauncher(Path.cwd(), environment), Path(".blip/claims"))
    todo = plan(load_config(Path("params.yaml")))
    outcomes = run_plan(todo, run, 2, lambda *_: None, lambda _: None)
    return {outcome.name: outcome.state for outcome in outcomes}


def test_the_whole_graph_is_planned_quickly(project: Path) -> None:
    todo = plan(load_config(Path("params.yaml")))
    assert todo.fresh == frozenset()
    first = max(todo.urgency, key=lambda name: todo.urgency[name])
    assert first.startswith("ingest@")
    assert todo.urgency["pretrain@unfiltered"] > todo.urgency["pretrain@human"]


def test_git_keeps_the_reports_of_dvc_and_not_its_outputs() -> None:
    def ignored(path: str) -> bool:
        command = ["git", "-C", str(ROOT), "check-ignore", "--quiet", "--no-index", path]
        return subprocess.run(command, check=False).returncode == 0

    if not (ROOT / ".git").exists():
        pytest.skip("needs the git repository")
    assert not ignored("reports/select.json")
    assert not ignored("dvc.lock")
    for out in (
        "datasets/web",
        "models/human",
        "results/filter",
        "tokenizer/vocab.txt",
        "data/web.tar",
        "runs/x",
    ):
        assert ignored(out)
