"""Processes of torchrun share each benchmark; what they write, and what comes of kept tokens, is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from blip.config import dump_config
from blip.files import digest_directory
from blip.models.blip import Blip
from tests.paper_benchmarks import (
    test_ads,
    test_judgments,
    test_nlvr,
    test_ovad,
    test_sugarcrepe,
    test_video_qa,
    test_video_retrieval,
    test_visdial,
    test_vqa,
)
from tests.paper_benchmarks.every_task import TASKS, evaluate_all

pytestmark = pytest.mark.slow

MODELS = {"vqa_model": "vqa", "nlvr_model": "nlvr", "match_model": "matching"}
OF_PHOTOS = (
    test_vqa,
    test_nlvr,
    test_visdial,
    test_sugarcrepe,
    test_judgments,
    test_ads,
    test_ovad,
)
OF_VIDEOS = (test_video_retrieval, test_video_qa)


@pytest.fixture
def folder(tmp_path: Path, config, random_model, draw_photos) -> Path:
    """Write what every task reads, and the models."""
    for module in (*OF_PHOTOS, *OF_VIDEOS):
        own = tmp_path / module.__name__.rpartition("test_")[2]
        own.mkdir()
        module.write_files(own, *([draw_photos] if module in OF_PHOTOS else []))
    for name, parts in MODELS.items():
        (tmp_path / name).symlink_to(random_model(parts))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(dump_config(config)))
    return tmp_path


def digests(out: Path) -> dict[str, str]:
    return {task: digest_directory(out / task) for task in TASKS}


def test_some_processes_and_kept_tokens_give_what_one_computes(
    folder: Path, feature_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_all(folder, tmp_path / "alone")
    found = digests(tmp_path / "alone")

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    job = ["-m", "tests.paper_benchmarks.every_task", str(folder), str(tmp_path / "together")]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *job],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "BLIP_FEATURE_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for rank in "01":
        assert digests(tmp_path / "together" / rank) == found
    assert done.stdout.count("answering 100%") == 2  # of photos and of videos: one process shows it
    # Batches are those of one process, so that either finds what the other has kept.
    names = {path.name for path in feature_cache.iterdir()}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == names

    def refuse(*_: object) -> None:
        raise AssertionError("an image is encoded")

    monkeypatch.setattr(Blip, "encode_image", refuse)
    monkeypatch.setattr(Blip, "encode_images", refuse)
    evaluate_all(folder, tmp_path / "again")
    assert digests(tmp_path / "again") == found
