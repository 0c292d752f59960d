"""A study: its list, its sums over seeds, its page."""

import math
import shutil
import subprocess
from pathlib import Path

import pytest

from blip.config import PRESETS, parse_overrides
from blip.errors import ConfigError, IntegrationError
from blip.files import write_json
from blip.integrations.experiment import describe
from blip.integrations.study import (
    ARMS,
    Estimate,
    Study,
    estimate,
    gains,
    load_study,
    read_results,
    run_arguments,
    write_page,
)

SPEC = """
preset: demo
base: {pretrain.steps: 30}
seeds: [1, 2]
variations:
  both: {}
  filter only: {capfilt.keep: filter}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with the graph, so that experiments have their workspaces."""
    root = PRESETS.parents[1]
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("")
    (tmp_path / "study.yaml").write_text(SPEC)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    return tmp_path


def finish(checkout: Path, study: Study, variation: str, seed: int, values: list[float]) -> None:
    """Write the results that an experiment leaves, one value an arm."""
    workspace = describe(checkout, None, study.preset, study.overrides(variation, seed)).workspace
    for arm, value in zip(ARMS, values, strict=True):
        recall = {"tr_r1": {"value": value}, "ir_r1": {"value": value + 2}}
        write_json(workspace / "results" / arm / "retrieval/metrics.json", {"retrieval": recall})
        cider = {"cider": {"value": 10 * value}}
        write_json(workspace / "results" / arm / "captioning/metrics.json", {"captioning": cider})


def test_estimate_is_the_t_interval() -> None:
    # scipy.stats.t.interval(0.95, 2, loc=2, scale=1 / sqrt(3))
    assert estimate([1.0, 2.0, 3.0]).low == pytest.approx(-0.4841, abs=1e-3)
    assert estimate([1.0, 2.0, 3.0]).high == pytest.approx(4.4841, abs=1e-3)
    assert estimate([5.0]) == Estimate(5.0, -math.inf, math.inf)
    assert estimate([5.0]).words(sign=True) == "+5.0"


def test_page_pairs_gains_by_seed(checkout: Path) -> None:
    study = load_study(checkout / "study.yaml")
    finish(checkout, study, "both", 1, [1.0, 3.0, 4.0])
    finish(checkout, study, "both", 2, [2.0, 3.0, 7.0])
    results = read_results(checkout, study)
    assert gains(results, "both", "unfiltered", "recall") == [3.0, 5.0]
    assert gains(results, "both", "human", "cider") == [10.0, 40.0]
    write_page(checkout, study, checkout / "docs/study.md")
    page = (checkout / "docs/study.md").read_text()
    assert "| unfiltered: web + human | 2 | 2.5 [-3.9, 8.9] |" in page
    assert "2 of 2, 2 of 2 / 2 of 2, 2 of 2" in page
    assert "filter only" not in page, "a variation without results has no row"
    assert (checkout / "docs/pictures/study.svg").read_text().startswith("<svg")


def test_overrides_reach_an_experiment_as_they_are() -> None:
    overrides = {"a.b": None, "c": True, "d": 1e-5, "e": "two words", "f": [1, {"g": None}]}
    study = Study(preset="demo", base=overrides, seeds=[3], variations={"both": {}})
    sets = [a[6:] for a in run_arguments(study, "both", 3) if a.startswith("--set=")]
    assert parse_overrides(sets) == {**overrides, "seed": 3}


def test_nothing_finished_is_said(checkout: Path) -> None:
    study = load_study(checkout / "study.yaml")
    with pytest.raises(IntegrationError, match="no experiment of the study is finished"):
        write_page(checkout, study, checkout / "docs/study.md")


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(SPEC.replace("seeds", "seed"))
    with pytest.raises(ConfigError, match="seed"):
        load_study(tmp_path / "study.yaml")


def test_the_kept_study_is_readable() -> None:
    study = load_study(PRESETS.parents[1] / "docs/study.yaml")
    assert {"both", "filter only", "captioner only"} <= study.variations.keys()
