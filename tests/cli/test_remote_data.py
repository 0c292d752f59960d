"""Training on dataset versions in a bucket, with the commands a person would type."""

import os
import shutil
from pathlib import Path

import pytest

from blip.files import digest_directory
from tests.cli.conftest import Project

pytestmark = pytest.mark.slow


def test_training_from_a_bucket_writes_the_same_bytes(project: Project, bucket: Path) -> None:
    for name in ("web", "human"):
        project.run(f"ingest {name} --out datasets/{name}")
    shutil.copytree(project.path / "datasets", bucket / "datasets")
    project.run("tokenizer --data datasets/web --data datasets/human --out tokenizer")
    options = "--tokenizer tokenizer --set pretrain.pairs.shuffle_shards=2"
    for place, out in (("datasets", "here"), ("s3://bucket/datasets", "there")):
        data = f"--data {place}/web --data {place}/human"
        project.run(f"pretrain {data} {options} --out models/{out}")
    models = project.path / "models"
    assert digest_directory(models / "here") == digest_directory(models / "there")
    there = "--data s3://bucket/datasets/web --data s3://bucket/datasets/human"
    printed = project.run(f"tokenizer {there} --out tokenizer")
    assert "is up to date" in printed  # wherever the same data lie, the work is the same

    (bucket / "datasets/human/stage.json").unlink()  # then the manifest names the version
    tar = next((bucket / "datasets/human/images").iterdir())
    tar.write_bytes(tar.read_bytes()[:-2000])
    shutil.rmtree(os.environ["BLIP_SHARD_CACHE"])
    verb = "finetune captioning --model models/here --data s3://bucket/datasets/human"
    printed = project.run(f"{verb} --out models/captioner", code=2)
    assert f"s3://bucket/datasets/human/images/{tar.name}: failed" in printed
    assert not (models / "captioner").exists()
