"""Recalls equal those of the reference, on its recorded score matrices."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from blip.errors import DataError
from blip.metrics.ranking import best_ranks, median_rank, ranks, summary


def image_text(i2t: np.ndarray, t2i: np.ndarray, own: list[list[int]]) -> dict[str, float]:
    owner = np.repeat(np.arange(len(own)), [len(texts) for texts in own])
    return summary(best_ranks(i2t, own), ranks(t2i, owner), "img")


def video_text(v2t: np.ndarray, t2v: np.ndarray) -> dict[str, float]:
    order = np.arange(len(v2t))
    of_texts = ranks(t2v, order)
    found = summary(ranks(v2t, order), of_texts, "vid")
    return {**found, "vid_mdR": median_rank(of_texts)}


@pytest.mark.parametrize("k", [3, 6])
def test_golden_images(shared: Path, k: int) -> None:
    with safe_open(shared / "golden/retrieval_eval.safetensors", "np") as golden:
        i2t, t2i = golden.get_tensor(f"k{k}/scores_i2t"), golden.get_tensor(f"k{k}/scores_t2i")
        own = list(json.loads(golden.metadata()["img2txt"]).values())
        expected = json.loads(golden.metadata()[f"k{k}/metrics"])
    assert image_text(i2t, t2i, own) == pytest.approx(expected, abs=1e-9)  # measured 0


def test_golden_videos(shared: Path) -> None:
    with safe_open(shared / "golden/video_retrieval_eval.safetensors", "np") as golden:
        found = video_text(golden.get_tensor("out/scores_v2t"), golden.get_tensor("out/scores_t2v"))
        expected = json.loads(golden.metadata()["metrics"])
    assert found == pytest.approx(expected, abs=1e-9)  # measured 0


def test_synthetic_matrices(shared: Path) -> None:
    folder = shared / "data/metric_refs_synthetic"
    recorded = json.loads((folder / "retrieval_ovad_open.json").read_text())

    def best(rows: np.ndarray) -> np.ndarray:
        chosen = np.argsort(rows, axis=1)[:, -128:]
        kept = np.full(rows.shape, -100.0)
        np.put_along_axis(kept, chosen, np.take_along_axis(rows, chosen, 1), 1)
        return kept

    scores = np.random.RandomState(101).standard_normal((1000, 5000))
    own = np.arange(5000).reshape(1000, 5)
    np.put_along_axis(scores, own, np.take_along_axis(scores, own, 1) + 3.0, 1)
    found = image_text(best(scores), best(scores.T), own.tolist())
    assert found == pytest.approx(recorded["image_text_1000x5000"]["expected"], abs=1e-9)

    scores = np.random.RandomState(102).standard_normal((1000, 1000))
    scores[np.arange(1000), np.arange(1000)] += 2.5
    found = video_text(best(scores), best(scores.T))
    assert found == pytest.approx(recorded["video_text_1000x1000"]["expected"], abs=1e-9)


@given(st.integers(1, 12), st.integers(0, 1000))
def test_a_rank_is_the_place_in_the_row_read_backwards(size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 3, (4, size)).astype(float)  # with ties
    target = generator.integers(0, size, 4)
    order = np.argsort(scores, axis=1, kind="stable")[:, ::-1]
    places = (order == target[:, None]).argmax(axis=1)
    np.testing.assert_array_equal(ranks(scores, target), places)


def test_a_score_that_is_not_a_number() -> None:
    with pytest.raises(DataError, match="scores, row 1: holds what is not a number"):
        ranks([[0.0, 1.0], [np.nan, 1.0]], [0, 1])
