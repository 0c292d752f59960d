"""`blip evaluate` by torchrun: processes share the images, and the numbers are those of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from blip.config import dump_config
from blip.files import digest_directory

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "parts", "ranks"),
    [("retrieval", "retrieval", 2), ("retrieval", "retrieval", 4), ("captioning", "captioning", 2)],
)  # the 12 images are 3 batches: of 4 processes, one has nothing to do
def test_some_processes_find_what_one_finds(
    test_set, random_model, tmp_path: Path, task: str, parts: str, ranks: int
) -> None:
    config, data = test_set
    decoding = config.evaluate.decoding.model_copy(update={"batch_size": 4})
    evaluate = config.evaluate.model_copy(update={"decoding": decoding})
    document = dump_config(config.model_copy(update={"evaluate": evaluate, "threads": 1}))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    verb = ["-m", "blip", "evaluate", task, "--checkpoint", str(random_model(parts))]
    verb += ["--data", str(data), "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    for out, launcher in (("alone", []), ("together", torchrun)):
        environment = {**os.environ, "BLIP_TRACKING": "off", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *launcher, *verb, out],
            cwd=tmp_path,
            env={**environment, "BLIP_FEATURE_CACHE_GB": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
    assert digest_directory(tmp_path / "together") == digest_directory(tmp_path / "alone")
