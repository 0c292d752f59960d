import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from blip.config import PRESETS, Config, load_config
from blip.data.dataset import CAPTIONS, RECORDS, Shard, write_manifest, write_table
from blip.data.scenes import Group, Scene
from blip.data.truth import Truth, write_truth
from blip.errors import DataError
from blip.evaluate.filter import evaluate_filter
from blip.files import read_json
from blip.tracker import NullTracker

SCENE = Scene((Group("ring", "red", "large", "plain", 1),), None, "grey", "plain")


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(
        PRESETS / "demo.yaml",
        {"evaluate.bootstrap_samples": 200, "evaluate.truth": None, "capfilt.threshold": 0.5},
    )


def with_truth(config: Config, path: Path) -> Config:
    evaluate = config.evaluate.model_copy(update={"truth": str(path)})
    return config.model_copy(update={"evaluate": evaluate})


def write_scored(folder: Path, texts: list[tuple[str, str, str, float | None]]) -> Path:
    """Write a version of (source, origin, text, score) rows without images."""
    sources = sorted({source for source, *_ in texts})
    size = {"width": 1, "height": 1, "extension": "png", "offset": 0, "size": 0}
    records = [{"key": f"k-{source}", "source": source, **size} for source in sources]
    names = ("caption_id", "key", "text", "origin", "itm_score")
    rows = [
        dict(zip(names, (str(i), f"k-{source}", text, origin, score), strict=True))
        for i, (source, origin, text, score) in enumerate(texts)
    ]
    files = folder / "records.parquet", folder / "captions.parquet"
    digests = [
        write_table(file, pa.Table.from_pylist(part, schema=schema))
        for file, part, schema in zip(files, (records, rows), (RECORDS, CAPTIONS), strict=True)
    ]
    shard = Shard(folder / "none.tar", *files, "0" * 64, *digests, len(records), len(rows))
    write_manifest(folder, [shard], {}, {})
    return folder


def measured(config: Config, data: Path, out: Path) -> dict:
    out.mkdir()
    evaluate_filter(config, data, out, NullTracker())
    return read_json(out / "metrics.json")["filter"]


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, Path]:
    """Clean texts and wrong colours at 0.4 to 0.8, mismatched ones at 0.0 to 0.2."""
    texts, truths = [], []
    for kind, count, low, high in (
        ("clean", 40, 0.4, 0.8), ("mismatch", 20, 0.0, 0.2), ("colour", 20, 0.4, 0.8),
    ):  # fmt: skip
        for i, score in enumerate(np.linspace(low, high, count)):
            source, text = f"{kind}-{i}.png", f" {kind} text"
            texts.append((source, "web", text.strip(), float(score)))
            truths.append(Truth(source, text, kind, SCENE))
            true = i % 2 == 0
            said = "a large red ring" if true else "a blue ring"
            texts.append((source, "synthetic", said, 0.9 if true or i % 4 == 1 else 0.1))
    write_truth(tmp_path / "truth.jsonl", truths)
    return write_scored(tmp_path / "scored", texts), tmp_path / "truth.jsonl"


def test_numbers_of_a_filter_that_sees_mismatches_and_no_colours(
    config: Config, world: tuple[Path, Path], tmp_path: Path
) -> None:
    data, truth = world
    found = measured(with_truth(config, truth), data, tmp_path / "out")
    assert (found["web_texts"], found["synthetic_texts"]) == (80, 80)
    kinds = found["kinds"]
    assert [kinds[k]["texts"] for k in ("clean", "mismatch", "colour")] == [40, 20, 20]
    kept = {kind: kinds[kind]["kept"]["value"] for kind in kinds}
    assert kept == {"clean": 0.75, "colour": 0.75, "mismatch": 0.0}
    assert kinds["mismatch"]["auc"]["value"] == 1.0
    assert kinds["colour"]["auc"]["value"] == pytest.approx(0.5, abs=0.01)
    assert found["precision"]["value"] == pytest.approx(30 / 45)
    assert found["recall"]["value"] == pytest.approx(30 / 40)
    assert found["auc"]["value"] == pytest.approx(0.75, abs=0.01)
    assert found["web_kept"]["value"] == pytest.approx(45 / 80)
    assert found["noise_ratio"]["value"] == pytest.approx(20 / 80)
    assert found["synthetic_true"]["value"] == pytest.approx(40 / 80)
    assert found["synthetic_true_kept"]["value"] == pytest.approx(40 / 60)
    for name in ("precision", "recall", "auc", "noise_ratio", "synthetic_true"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


def test_other_thresholds_and_the_histogram_are_written(
    config: Config, world: tuple[Path, Path], tmp_path: Path
) -> None:
    data, truth = world
    found = measured(with_truth(config, truth), data, tmp_path / "out")
    with (tmp_path / "out/thresholds.csv").open() as file:
        rows = {float(row["threshold"]): row for row in csv.DictReader(file)}
    assert len(rows) == 101
    for name in ("precision", "recall", "web_kept", "noise_ratio"):
        assert float(rows[0.5][name]) == pytest.approx(found[name]["value"])
    assert rows[0.9]["precision"] == ""  # nothing is kept: undefined
    assert float(rows[0.9]["recall"]) == 0
    with (tmp_path / "out/histogram.csv").open() as file:
        bins = list(csv.DictReader(file))
    assert sum(int(b["clean"]) for b in bins) == 40
    assert sum(int(b["noisy"]) for b in bins) == 40
    assert sum(int(b["synthetic"]) for b in bins if float(b["low"]) >= 0.88) == 60


def test_without_a_truth_only_the_shares_are_known(
    config: Config, world: tuple[Path, Path], tmp_path: Path
) -> None:
    found = measured(config, world[0], tmp_path / "out")
    assert found.keys() == {"web_texts", "synthetic_texts", "web_kept", "noise_ratio"}
    header = (tmp_path / "out/histogram.csv").read_text().splitlines()[0]
    assert header.replace('"', "") == "low,high,synthetic,web"


def test_without_scenes_synthetic_texts_are_not_judged(config: Config, tmp_path: Path) -> None:
    data = write_scored(
        tmp_path / "scored",
        [("a", "web", "x", 0.9), ("b", "web", "y", 0.2), ("a", "synthetic", "z", 0.9)],
    )
    write_truth(tmp_path / "t", [Truth("a", "x", "clean"), Truth("b", "y", "noise")])
    found = measured(with_truth(config, tmp_path / "t"), data, tmp_path / "out")
    assert "synthetic_true" not in found
    assert found["auc"]["value"] == 1.0


def test_a_truth_of_other_data_is_refused(config: Config, tmp_path: Path) -> None:
    data = write_scored(tmp_path / "scored", [("a", "web", "x", 0.9)])
    write_truth(tmp_path / "t", [Truth("other", "x", "clean")])
    with pytest.raises(DataError, match="t: says nothing about any of the 1 web texts"):
        measured(with_truth(config, tmp_path / "t"), data, tmp_path / "out")


def test_texts_that_the_truth_lacks_do_not_count(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [("a", "web", "x", 0.9), ("b", "web", "y", 0.8), ("c", "web", "z", 0.2)]
    data = write_scored(tmp_path / "scored", texts)
    write_truth(tmp_path / "t", [Truth("a", "x", "clean"), Truth("c", "z", "noise")])
    found = measured(with_truth(config, tmp_path / "t"), data, tmp_path / "out")
    assert found["precision"]["value"] == 1.0
    assert "says nothing about 1 of 3 web texts" in caplog.text


def test_texts_without_scores_are_refused(config: Config, tmp_path: Path) -> None:
    data = write_scored(tmp_path / "scored", [("a", "web", "x", None), ("b", "web", "y", 0.1)])
    with pytest.raises(DataError, match="1 of 2 texts have no match probability"):
        measured(config, data, tmp_path / "out")


def test_a_missing_truth_is_named(config: Config, tmp_path: Path) -> None:
    data = write_scored(tmp_path / "scored", [("a", "web", "x", 0.5)])
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read"):
        measured(with_truth(config, tmp_path / "absent.jsonl"), data, tmp_path / "out")
