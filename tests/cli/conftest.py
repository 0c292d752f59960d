"""A tiny experiment, run by its verbs as a person would type them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from blip.config import PRESETS, merge, read_yaml

TINY = {
    "world.web": 60,
    "world.human": 12,
    "world.test": 12,
    "ingest.shard_size": 25,
    "pretrain.steps": 12,
    "pretrain.batch_size": 8,
    "pretrain.checkpoint_every": 4,
    "finetune.captioning.steps": 6,
    "finetune.captioning.batch_size": 8,
    "finetune.captioning.checkpoint_every": 2,
    "finetune.retrieval.steps": 6,
    "finetune.retrieval.batch_size": 8,
    "finetune.retrieval.checkpoint_every": 2,
    "capfilt.threshold": 0.3,
    "evaluate.k": 4,
    "evaluate.bootstrap_samples": 50,
}

VERBS = [  # in the order of the graph
    "ingest web --out datasets/web",
    "ingest human --out datasets/human",
    "ingest test --out datasets/test",
    "validate datasets/web datasets/human datasets/test --out results/validation",
    "tokenizer --data datasets/web --data datasets/human --out tokenizer",
    "pretrain --data datasets/web --data datasets/human --tokenizer tokenizer --out models/unfiltered",
    "finetune captioning --model models/unfiltered --data datasets/human --out models/captioner",
    "finetune retrieval --model models/unfiltered --data datasets/human --out models/filter",
    "caption --model models/captioner --data datasets/web --out datasets/synthetic",
    "score --model models/filter --data datasets/web --data datasets/synthetic --out datasets/scored",
    "select --data datasets/scored --out datasets/bootstrapped",
    "evaluate retrieval --checkpoint models/filter --data datasets/test --out results/unfiltered/retrieval",
    "evaluate captioning --checkpoint models/captioner --data datasets/test --out results/unfiltered/captioning",
    "evaluate filter --data datasets/scored --out results/filter",
    "compare --baseline results/unfiltered --candidate results/unfiltered --out results/comparison/unfiltered",
]


class Project:
    """A folder with a `params.yaml` in which `blip` is run."""

    def __init__(
        self, path: Path, overrides: dict[str, object], preset: Path = PRESETS / "demo.yaml"
    ) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        (path / "params.yaml").write_text(
            yaml.safe_dump(merge(read_yaml(preset), overrides, preset))
        )

    def start(self, verb: str) -> subprocess.Popen[str]:
        """Start `blip VERB` in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "blip", *verb.split()],
            cwd=self.path,
            env={**os.environ, "BLIP_TRACKING": "off", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, verb: str, code: int = 0) -> str:
        """Run `blip VERB`, which must end with a code; give what it printed."""
        process = self.start(verb)
        printed, _ = process.communicate()
        assert process.returncode == code, printed
        return printed


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world's raw files."""
    from blip.config import load_config
    from blip.data.world import draw_world

    folder = tmp_path_factory.mktemp("raw")
    config = load_config(PRESETS / "demo.yaml", TINY)
    assert config.world is not None
    draw_world(config.world, folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, raw: Path) -> Project:
    """A project with its raw data, and nothing done yet."""
    (tmp_path / "data").symlink_to(raw)
    return Project(tmp_path, TINY)
