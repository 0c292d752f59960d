"""Recalls equal those of the reference, on its recorded score matrices."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from blip.errors import DataError
from blip.metrics.ranking import best_ranks, ranks
from tests.metrics.official_recalls import median_rank, summary


def image_text(i2t: np.ndarray, t2i: np.ndarray, own: list[list[int]]) -> dict[str, float]:
    owner = np.repeat(np.arange(len(own)), [len(texts) for texts in own])
    return summary(best_ranks(i2t, own), ranks(t2i, owner), "img")


def video_text(v2t: np.ndarray, t2v: np.ndarray) -> dict[str, float]:
    order = np.arange(len(v2t))
    of_texts = ranks(t2v, order)
    found = summary(ranks(v2t, order), of_texts, "vid")
    return {**found, "vid_mdR": median_rank(of_texts)}


def test_golden_images(shared: Path) -> None:
    found = 0
    for file in sorted((shared / "golden").glob("retrieval_eval*.safetensors")):
        with safe_open(file, "np") as golden:
            meta = golden.metadata()
            own = list(json.loads(meta["img2txt"]).values())
            for k in [name.split("/")[0] for name in meta if name.endswith("/metrics")]:
                matrices = [golden.get_tensor(f"{k}/scores_{way}") for way in ("i2t", "t2i")]
                expected = json.loads(meta[f"{k}/metrics"])
                assert image_text(*matrices, own) == pytest.approx(expected, abs=1e-9)  # measured 0
                found += 1
    assert found


def test_golden_videos(shared: Path) -> None:
    files = sorted((shared / "golden").glob("video_retrieval_eval*.safetensors"))
    assert files
    for file in files:
        with safe_open(file, "np") as golden:
            matrices = [golden.get_tensor(f"out/scores_{way}") for way in ("v2t", "t2v")]
            expected = json.loads(golden.metadata()["metrics"])
        assert video_text(*matrices) == pytest.approx(expected, abs=1e-9)  # measured 0


RECIPE = re.compile(
    r"RandomState\((\d+)\)\.standard_normal\(\((\d+),(\d+)\)\); \+([\d.]+) on .* top (\d+) per"
)


def test_synthetic_matrices(shared: Path) -> None:
    """Every recipe beside its expected figures."""
    found = 0
    for file in sorted((shared / "data/metric_refs_synthetic").glob("*.json")):
        for name, record in json.loads(file.read_text()).items():
            if not isinstance(record, dict) or "recipe" not in record:
                continue
            recipe = RECIPE.search(record["recipe"])
            assert recipe, name
            seed, rows, columns, k = (int(recipe[group]) for group in (1, 2, 3, 5))
            scores = np.random.RandomState(seed).standard_normal((rows, columns))
            own = np.arange(columns).reshape(rows, -1)
            shifted = np.take_along_axis(scores, own, 1) + float(recipe[4])
            np.put_along_axis(scores, own, shifted, 1)
            matrices = best(scores, k), best(scores.T, k)
            ours = video_text(*matrices) if rows == columns else image_text(*matrices, own.tolist())
            assert ours == pytest.approx(record["expected"], abs=1e-9), name  # measured 0
            found += 1
    assert found


def best(rows: np.ndarray, k: int) -> np.ndarray:
    """Keep the k best scores of every row."""
    chosen = np.argsort(rows, axis=1)[:, -k:]
    kept = np.full(rows.shape, -100.0)
    np.put_along_axis(kept, chosen, np.take_along_axis(rows, chosen, 1), 1)
    return kept


@given(st.integers(1, 12), st.integers(0, 1000))
def test_a_rank_is_the_place_in_the_row_read_backwards(size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 3, (4, size)).astype(float)  # with ties
    target = generator.integers(0, size, 4)
    order = np.argsort(scores, axis=1, kind="stable")[:, ::-1]
    places = (order == target[:, None]).argmax(axis=1)
    np.testing.assert_array_equal(ranks(scores, target), places)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 1000))
def test_the_best_rank_is_that_of_the_best_own_text(texts: int, images: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 3, (images, texts)).astype(float)
    own = [sorted(set(generator.integers(0, texts, 3).tolist())) for _ in range(images)]
    each = [
        min(ranks(row[None], [target])[0] for target in targets)
        for row, targets in zip(scores, own, strict=True)
    ]
    np.testing.assert_array_equal(best_ranks(scores, own), each)


def test_a_score_that_is_not_a_number() -> None:
    with pytest.raises(DataError, match="scores, row 1: holds what is not a number"):
        ranks([[0.0, 1.0], [np.nan, 1.0]], [0, 1])
