"""A toy project with a graph of five quick stages, in a git and DVC repository of its own."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from blip.config import PRESETS, merge, read_yaml
from blip.integrations.experiment import run_experiment

STEP = '''\
"""A stage of the toy project: `python step.py NAME OUT IN...` writes OUT/text."""
import json, os, pathlib, sys, time
name, out, *inputs = sys.argv[1:]
control = pathlib.Path(os.environ["TOY_CONTROL"])
with (control / "log").open("a") as log:
    log.write(json.dumps({"name": name, "pid": os.getpid(), "began": time.time()}) + "\\n")
what = json.loads((control / "orders").read_text()).get(name, {})
print(f"{name} begins", flush=True)
hog = b"x" * (what.get("eat", 0) << 20)
time.sleep(what.get("sleep", 0))
give_up = time.monotonic() + 600
while what.get("until", "") not in (control / "log").read_text():
    assert time.monotonic() < give_up
    time.sleep(0.02)
for edit in what.get("edit", []):
    pathlib.Path(edit).write_text("edited\\n")
if code := what.get("exit"):
    sys.exit(code)
path = pathlib.Path(out)
path.mkdir(parents=True, exist_ok=True)
texts = [p.read_text() for i in inputs for p in sorted(pathlib.Path(i).rglob("*")) if p.is_file()]
(path / "text").write_text(f"{name}({' '.join(texts)})")
pathlib.Path("reports").mkdir(exist_ok=True)
pathlib.Path(f"reports/{name}.json").write_text(json.dumps({"inputs": len(texts)}))
with (control / "log").open("a") as log:
    log.write(json.dumps({"name": name, "ended": time.time()}) + "\\n")
'''

GRAPH = """\
stages:
  prepare:
    desc: Begin
    cmd: python step.py prepare out/prepare raw
    deps: [raw, step.py]
    params: [seed]
    outs: [out/prepare]
  train:
    foreach: [left, right]
    do:
      cmd: python step.py train_${item} out/${item} out/prepare
      deps: [out/prepare]
      params: [pretrain.steps]
      outs: ["out/${item}"]
      metrics: [{"reports/train_${item}.json": {cache: false}}]
      meta: {weight: 5}
  select:
    cmd: python step.py select out/select out/left
    deps: [out/left]
    params: [capfilt.threshold]
    outs: [out/select]
  finish:
    cmd: python step.py finish out/finish out/select out/right
    deps: [out/select, out/right]
    outs: [out/finish]
"""


class Toy:
    """The toy project: where it is, what its stages are told to do, and what they did."""

    def __init__(self, root: Path, control: Path) -> None:
        self.root, self.control = root, control
        self.order()

    def order(self, **orders: Any) -> None:
        """Tell stages how to behave.

        `eat` so many MiB, `sleep` so many seconds, wait `until` another one began, `exit` with a code, `edit` files.
        """
        (self.control / "orders").write_text(json.dumps(orders))

    def log(self) -> list[dict[str, Any]]:
        """Give what stages wrote when they began and ended."""
        file = self.control / "log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def began(self) -> list[str]:
        """Name the stages that began, in order, and forget them."""
        names = [entry["name"] for entry in self.log() if "began" in entry]
        (self.control / "log").unlink(missing_ok=True)
        return names

    def set(self, key: str, value: Any) -> None:
        """Set one key of params.yaml."""
        file = self.root / "params.yaml"
        file.write_text(yaml.safe_dump(merge(read_yaml(file), {key: value}, file)))


def git(root: Path, *arguments: str) -> str:
    """Run git as a committer that needs no configuration."""
    who = ["-c", "user.name=toy", "-c", "user.email=toy@localhost", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *who, "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="session")
def toy_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "project"
    for folder in (".dvc", "raw"):
        (root / folder).mkdir(parents=True)
    (root / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    check_update = false\n"
    )
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / ".gitignore").write_text(
        "/out/\n/runs\n/catalog.db*\n/mlflow.db*\n/mlruns\n/mlartifacts\n"
    )
    (root / ".dvcignore").write_text("/.blip/\n")
    (root / "raw" / "words").write_text("raw\n")
    (root / "step.py").write_text(STEP)
    (root / "dvc.yaml").write_text(GRAPH)
    shutil.copy(PRESETS / "demo.yaml", root / "params.yaml")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "toy")
    return root


@pytest.fixture(scope="session")
def finished_template(toy_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy project after a whole run."""
    root, control = tmp_path_factory.mktemp("finished") / "project", tmp_path_factory.mktemp("log")
    shutil.copytree(toy_template, root)
    Toy(root, control)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_CONTROL", str(control))
        patch.chdir(root)
        _, code = run_experiment(root, say=lambda *_: None, done=lambda _: None, slots=2)
    assert code == 0
    return root


@pytest.fixture
def toy(toy_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """The toy project before its first run, in the current directory."""
    return _copy(toy_template, tmp_path, monkeypatch)


@pytest.fixture
def finished_toy(finished_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """The toy project after a whole run, in the current directory."""
    return _copy(finished_template, tmp_path, monkeypatch)


def _copy(template: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    root, control = folder / "project", folder / "control"
    shutil.copytree(template, root, symlinks=True)
    control.mkdir()
    monkeypatch.setenv("TOY_CONTROL", str(control))
    monkeypatch.chdir(root)
    return Toy(root, control)
