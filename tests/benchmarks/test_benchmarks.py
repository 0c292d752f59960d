"""The benchmarks at tiny size: every way gives one result, and the table holds every comparison."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
KEYS = {"path", "against", "ratio", "target", "ours_s", "theirs_s", "peak_mib"}


def bench(*options: str, program: str = "benchmarks") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", program, "--size", "tiny", "--repeats", "1", *options]
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
        ("captions", "fp32"),
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
    # The plain way repeats 577 image tokens for 32 texts, and projects them in every layer. Of ours,
    # the larger part is what libraries set up: 16 MiB against 27 in all.
    assert int(cells["their peak"]) > 1.3 * int(cells["peak MiB"])

    done = bench("--paths", "walk")
    assert done.returncode == 2
    assert done.stderr == (
        "benchmarks: no path 'walk': one of rerank, beam, nucleus, vqa, pretrain8, pretrain16, "
        "retrieval, input, loader, loader_s3, bf16, bf16_captions\n"
    )


@pytest.mark.slow
def test_curves(tmp_path: Path) -> None:
    curves = partial(bench, program="benchmarks.curves")
    done = curves("--points", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    names = ["beam", "nucleus", "rerank", "vqa", "vision", "rerank_size"]
    measured = [line.split(",")[0] for line in done.stderr.splitlines()]
    assert measured == [name for name in names for _ in range(2)]
    found = {}
    for picture in ("batch", "candidates", "image_size"):
        root = ElementTree.parse(tmp_path / f"benchmark_{picture}.svg").getroot()
        for chart in root.findall("{*}svg"):
            drawn = chart.findall("{*}polyline")
            assert all(len(line.attrib["points"].split()) == 2 for line in drawn)
            found[chart.findtext("{*}title")] = [line.findtext("{*}title") for line in drawn]
    ways = ["ours", "plain", "transformers"]
    assert found == {
        "Captions by beam search: ms per caption": ways,
        "Captions by nucleus sampling: ms per caption": ways,
        "Re-ranking, 384 px: ms per pair": ways,
        "VQA, 2 questions: ms per question": ways[:2],
        "Image encoder: ms per image": ways,
        "Re-ranking, 32 candidates: ms per pair": ways,
    }

    done = curves("--paths", "input")
    assert done.returncode == 2
    assert done.stderr == (
        "benchmarks: no curve 'input': one of beam, nucleus, rerank, vqa, vision, rerank_size\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "options", "says"),
    [
        ("tracking", ["--steps", "20"], "gradient norm"),
        ("checkpoints", ["--repeats", "1", "--steps", "2"], "a save every 100 steps"),
        ("scaling", ["8", "ddp"], '"steps"'),  # what it starts one or two of
    ],
)
def test_what_training_costs(tmp_path: Path, program: str, options: list[str], says: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{program}", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
