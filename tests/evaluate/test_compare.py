from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from blip.config import PRESETS, Config, load_config
from blip.data.dataset import write_table
from blip.errors import DataError
from blip.evaluate import captioning, retrieval
from blip.evaluate.compare import compare, format_comparison
from blip.files import read_json
from blip.tracker import NullTracker


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(PRESETS / "demo.yaml", {"evaluate.bootstrap_samples": 200})


def write_arm(folder: Path, keys: list[str], skill: float) -> Path:
    generator = np.random.default_rng(0)
    ranks = (generator.geometric(skill, (len(keys), 3)) - 1).tolist()
    rows = [
        {"key": key, "tr_rank": min(rank), "ir_ranks": rank}
        for key, rank in zip(keys, ranks, strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=retrieval.PER_IMAGE)
    write_table(folder / "retrieval/per_example.parquet", table)
    captions = {key: "a red dog on the mat" if skill > 0.3 else "the mat" for key in keys}
    references = {key: [f"a red dog on mat {key}"] for key in keys}
    table = captioning.score_captions(captions, references)
    write_table(folder / "captioning/per_example.parquet", table)
    return folder


def test_a_better_arm_is_found_better(tmp_path: Path, config: Config) -> None:
    keys = [f"{i:03}" for i in range(60)]
    baseline = write_arm(tmp_path / "unfiltered", keys, 0.2)
    candidate = write_arm(tmp_path / "bootstrapped", keys[::-1], 0.7)  # in another order
    compare(config, baseline, candidate, tmp_path, NullTracker())
    found = read_json(tmp_path / "metrics.json")
    for task, metric in (("retrieval", "ir_r1"), ("captioning", "bleu4")):
        d = found[task][metric]
        assert d["candidate"] - d["baseline"] == pytest.approx(d["difference"])
        assert 0 < d["low"] <= d["difference"] <= d["high"]
        assert d["p"] < 0.05
    assert found["retrieval"].keys() == retrieval.statistics(_table(baseline)).keys()
    text = format_comparison(found, "unfiltered", "bootstrapped").splitlines()
    assert text[0].split() == [
        "metric", "unfiltered", "bootstrapped", "difference", "interval", "p",
    ]  # fmt: skip
    assert len({len(line) for line in text}) == 1
    assert sum(len(metrics) for metrics in found.values()) == len(text) - 1


def test_an_arm_equals_itself(tmp_path: Path, config: Config) -> None:
    arm = write_arm(tmp_path / "arm", ["a", "b", "c"], 0.5)
    compare(config, arm, arm, tmp_path, NullTracker())
    for metrics in read_json(tmp_path / "metrics.json").values():
        for d in metrics.values():
            assert (d["difference"], d["low"], d["high"], d["p"]) == (0, 0, 0, 1)


def test_other_images_are_refused(tmp_path: Path, config: Config) -> None:
    baseline = write_arm(tmp_path / "one", ["a", "b", "c"], 0.5)
    candidate = write_arm(tmp_path / "two", ["a", "c"], 0.5)
    with pytest.raises(DataError, match=r"two/retrieval: lacks 1 images .* the first is b"):
        compare(config, baseline, candidate, tmp_path, NullTracker())
    with pytest.raises(DataError, match=r"two/retrieval: lacks 1 images .* the first is b"):
        compare(config, candidate, baseline, tmp_path, NullTracker())


def test_a_task_of_one_arm_alone_is_refused(tmp_path: Path, config: Config) -> None:
    baseline = write_arm(tmp_path / "one", ["a"], 0.5)
    (tmp_path / "two/retrieval").mkdir(parents=True)
    with pytest.raises(DataError, match="two/captioning: does not exist"):
        compare(config, baseline, tmp_path / "two", tmp_path, NullTracker())
    with pytest.raises(DataError, match="hold no retrieval or captioning results"):
        compare(config, tmp_path / "three", tmp_path / "four", tmp_path, NullTracker())


@pytest.mark.parametrize("damage", ["cut", "columns", "gone"])
def test_damaged_results_are_named(tmp_path: Path, config: Config, damage: str) -> None:
    arm = write_arm(tmp_path / "arm", ["a", "b"], 0.5)
    file = arm / "retrieval/per_example.parquet"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "columns":
        write_table(file, pa.table({"key": ["a"]}))
    else:
        file.unlink()
    with pytest.raises(DataError, match=r"arm/retrieval/per_example\.parquet: "):
        compare(config, arm, arm, tmp_path, NullTracker())


def _table(arm: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(arm / "retrieval/per_example.parquet")
