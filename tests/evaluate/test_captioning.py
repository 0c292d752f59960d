from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from blip.data.dataset import open_dataset, write_manifest
from blip.errors import DataError
from blip.evaluate.bootstrap import intervals
from blip.evaluate.captioning import (
    PER_IMAGE,
    evaluate_captioning,
    score_captions,
    statistics,
    write_captions,
)
from blip.evaluate.evaluation_set import open_evaluation_set
from blip.files import digest_directory, read_json
from blip.metrics.captions import BleuCounts, Corpus, bleu
from blip.tracker import NullTracker

CAPTIONS = {"a": "a red dog on the mat", "b": "two cats", "c": "a man rides a bike in the street"}
REFERENCES = {
    "a": ["A red dog on a mat.", "the dog"],
    "b": ["Two cats sleep!"],
    "c": ["A man rides a bike down the street", "a biker in the street"],
}


def test_a_resample_scores_as_the_corpus_it_drew() -> None:
    statistic = statistics(score_captions(CAPTIONS, REFERENCES))["bleu4"]
    draws = np.array([[1.0, 1, 1], [2, 0, 1], [0, 3, 0]])
    for drawn, found in zip(draws.astype(int), statistic(draws), strict=True):
        keys = [key for key, count in zip("abc", drawn, strict=True) for _ in range(count)]
        lower = [[t.lower().strip(".!") for t in REFERENCES[key]] for key in keys]
        counts = Corpus([CAPTIONS[key] for key in keys], lower).bleu_counts()
        sums = BleuCounts(*(count.sum(axis=0) for count in counts))
        assert found == pytest.approx(100 * bleu(sums)[-1], abs=1e-9)  # measured 0


def test_scores_are_means_over_images_times_100() -> None:
    table = score_captions(CAPTIONS, REFERENCES)
    found = intervals(statistics(table), 3, 10, 0.9, 0)
    assert table.schema == PER_IMAGE
    assert found["cider"].value == pytest.approx(100 * np.mean(table["cider"].to_numpy()))
    assert found["rouge_l"].value == pytest.approx(100 * np.mean(table["rouge_l"].to_numpy()))


def test_a_model_is_measured(test_set, random_model, tmp_path: Path) -> None:
    config, data = test_set
    model = random_model("captioning")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        evaluate_captioning(
            config, model, open_evaluation_set(data), tmp_path / name, NullTracker()
        )
    assert digest_directory(tmp_path / "one") == digest_directory(tmp_path / "two")
    rows = read_json(tmp_path / "one/captions.json")
    dataset = open_dataset(data)
    assert [row["key"] for row in rows] == dataset.records()["key"].to_pylist()
    assert sum(len(row["references"]) for row in rows) == dataset.num_captions
    captions = {row["key"]: row["caption"] for row in rows}
    table = score_captions(captions, {row["key"]: row["references"] for row in rows})
    assert pq.read_table(tmp_path / "one/per_example.parquet").equals(table)
    found = read_json(tmp_path / "one/metrics.json")["captioning"]
    assert found["images"] == 12
    for name in ("bleu4", "cider", "rouge_l"):
        assert 0 <= found[name]["low"] <= found[name]["high"]


def test_bf16_writes_mostly_the_same_captions(test_set, random_model, tmp_path: Path) -> None:
    config, data = test_set
    model = random_model("captioning")
    greedy = {"decoding": config.evaluate.decoding.model_copy(update={"method": "greedy"})}
    full = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=greedy)})
    half = config.evaluate.model_copy(update={**greedy, "precision": "bf16"})
    exact = write_captions(full, model, open_evaluation_set(data))
    coarse = write_captions(
        config.model_copy(update={"evaluate": half}), model, open_evaluation_set(data)
    )
    assert exact.keys() == coarse.keys()
    same = sum(exact[key] == coarse[key] for key in exact)
    # Measured: 8 of 12, of a model with random weights, whose choices are close.
    assert len(exact) // 2 <= same < len(exact)


def test_a_set_without_captions_is_refused(test_set, random_model, tmp_path: Path) -> None:
    config, _ = test_set
    bare = tmp_path / "bare"
    bare.mkdir()
    write_manifest(bare, [], {}, {})
    with pytest.raises(DataError, match="bare: has no caption to compare with"):
        evaluate_captioning(
            config, random_model("captioning"), open_evaluation_set(bare), tmp_path, NullTracker()
        )
