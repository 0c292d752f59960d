import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_captions_are_compared_and_timed(tmp_path: Path, official: Path) -> None:
    references = [
        {"image_id": image, "caption": [f"a dog number {image}", "It's a dog."]}
        for image in range(20)
    ]
    captions = [{"image_id": image, "caption": f"the dog {image}."} for image in range(20)]
    (tmp_path / "gt.json").write_text(json.dumps(references))
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    command = [sys.executable, "-m", "benchmarks.captions", "--repeats", "1"]
    files = ["--predictions", "captions.json", "--annotations", "gt.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *files], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, *seconds = done.stdout.splitlines()
    assert first.startswith("20 images, 40 references: largest difference")
    assert [line.partition(":")[0] for line in seconds] == ["clock", "CPU"]
