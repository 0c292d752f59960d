"""Average precision equals scikit-learn's; the means those of OVAD's evaluator."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from blip.errors import DataError
from blip.metrics.attributes import (
    average_precision,
    average_precisions,
    mean_average_precision,
)


@given(st.integers(0, 10_000), st.integers(1, 50), st.integers(1, 50))
def test_average_precision_equals_that_of_scikit_learn(seed, size, levels) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, size)
    labels[0] = 1
    scores = generator.integers(0, levels, size) / levels
    ours = float(average_precision(labels, scores))
    assert ours == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


@given(st.integers(0, 10_000))
def test_a_box_that_counts_twice_stands_twice(seed) -> None:
    generator = np.random.default_rng(seed)
    labels, scores = generator.integers(-1, 2, (12, 5)), generator.random((12, 5)).round(1)
    draws = generator.integers(0, 3, (3, 12))
    plain = [
        average_precisions(np.repeat(labels, row, 0), np.repeat(scores, row, 0)) for row in draws
    ]
    np.testing.assert_allclose(average_precisions(labels, scores, draws), plain, atol=1e-12)


def test_the_official_means(shared: Path) -> None:
    """Every set beside the recorded expectations."""
    folder = shared / "data/metric_refs_synthetic"
    worst = 0.0
    sets = 0
    for file in sorted(folder.glob("*.json")):
        for name, record in json.loads(file.read_text()).items():
            if "ap_per_class_pct" not in (record if isinstance(record, dict) else {}):
                continue
            arrays = np.load(folder / record["file"])
            each = average_precisions(arrays["labels"], arrays["pred"])
            sets_of = {
                s: np.flatnonzero(arrays["freq_set"] == s) for s in ("head", "medium", "tail")
            }
            means = mean_average_precision(each, sets_of)
            official = [np.nan if ap is None else ap for ap in record["ap_per_class_pct"]]
            np.testing.assert_allclose(100 * each, official, atol=1e-9, err_msg=name)
            assert np.count_nonzero(~np.isnan(each)) == record["expected"]["classes_scored"]
            for group, value in means.items():
                worst = max(worst, abs(float(value) - record["expected"][f"mAP_{group}_pct"]))
            sets += 1
    assert sets
    assert worst < 1e-9  # measured 5e-14


def test_bad_scores() -> None:
    with pytest.raises(DataError, match="box 0, attribute 1: the score is not a number"):
        average_precisions([[1, 0]], [[0.5, np.nan]])
    with pytest.raises(DataError, match="must be boxes x attributes"):
        average_precisions([[1, 0]], [[0.5]])
    assert np.isnan(average_precisions([[-1, 0]], [[0.5, 0.5]])).all()
