"""The benchmarks at tiny size: every way gives one result, and the table holds every comparison."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEYS = {"path", "against", "ratio", "target", "ours_s", "theirs_s", "peak_mib"}


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", "--size", "tiny", "--repeats", "1", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_every_path_at_tiny_size(tmp_path: Path) -> None:
    out, record = tmp_path / "results.json", tmp_path / "RESULTS.md"
    record.write_text("# Results\n\n## Another machine\n\nIts table.\n")
    done = bench("--no-memory", "--scale", "0.01", "--out", str(out), "--record", str(record))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    compared = [(row["path"].split(",")[0], row["against"]) for row in rows]
    assert compared == [
        ("re-rank", "plain"),
        ("re-rank", "transformers"),
        ("captions", "plain"),
        ("captions", "transformers"),
        ("captions", "plain"),
        ("captions", "transformers"),
        ("VQA", "plain"),
        ("pre-training step", "plain"),
        ("pre-training step", "plain"),
        ("retrieval", "plain"),
        ("input", "torchvision"),
        ("loader from disk", "webdataset"),
        ("loader from disk", "torchvision"),
        ("loader from S3 on loopback", "webdataset"),
        ("loader from S3 on loopback", "torchvision"),
        ("image encoder", "fp32"),
    ]
    for row in rows:
        assert row.keys() == KEYS
        assert row["ratio"] == pytest.approx(row["theirs_s"] / row["ours_s"])
        assert row["target"] is row["peak_mib"] is None
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1
    kept = record.read_text()
    assert "## Another machine\n\nIts table." in kept
    assert kept.endswith("\n".join(table) + "\n")


@pytest.mark.slow
def test_peaks_and_choices() -> None:
    done = bench("--paths", "rerank", "--against", "plain")
    assert done.returncode == 0, done.stderr
    head, _, *rows = (line for line in done.stdout.splitlines() if line.startswith("|"))
    assert len(rows) == 1
    cells = dict(zip(head.split("|"), rows[0].split("|"), strict=True))
    cells = {name.strip(): cell.strip() for name, cell in cells.items()}
    # The plain way repeats 577 image tokens for 32 texts, and projects them in every layer.
    assert int(cells["their peak"]) > 2 * int(cells["peak MiB"])

    done = bench("--paths", "walk")
    assert done.returncode == 2
    assert done.stderr == (
        "benchmarks: no path 'walk': one of rerank, beam, nucleus, vqa, pretrain8, pretrain16, "
        "retrieval, input, loader, loader_s3, bf16\n"
    )
