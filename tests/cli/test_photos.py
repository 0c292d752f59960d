"""The whole loop on real photos: nothing in the code may assume drawn images."""

from pathlib import Path

import pytest

from blip.config import PRESETS
from blip.files import read_json
from tests.cli.conftest import VERBS, Project

PHOTOS = 200


@pytest.mark.slow
def test_the_loop_runs_on_photos(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLIP_SHARED", str(shared))
    overrides = {
        "ingest.sources.human.limit": 40,
        "ingest.sources.web.limit": PHOTOS - 80,
        "ingest.sources.test.limit": 40,
        "ingest.shard_size": 50,
        "pretrain.steps": 8,
        "finetune.captioning.steps": 6,
        "finetune.retrieval.steps": 6,
        "pretrain.batch_size": 16,
        "finetune.captioning.batch_size": 16,
        "finetune.retrieval.batch_size": 16,
        "capfilt.threshold": 0.2,
        "evaluate.k": 8,
        "evaluate.bootstrap_samples": 50,
    }
    project = Project(tmp_path, overrides, PRESETS / "flickr8k.yaml")
    for verb in VERBS:
        project.run(verb)
    manifest = read_json(tmp_path / "datasets/web/manifest.json")
    assert manifest["counts"]["images"] == PHOTOS - 80
    scores = read_json(tmp_path / "results/filter/metrics.json")["filter"]
    assert 0.3 < scores["kinds"]["mismatch"]["texts"] / (PHOTOS - 80) < 0.5
    assert (
        read_json(tmp_path / "results/unfiltered/retrieval/metrics.json")["retrieval"]["images"]
        == 40
    )
    project.run("report")
    assert "data:image/jpeg" in (tmp_path / "reports/report.html").read_text()
