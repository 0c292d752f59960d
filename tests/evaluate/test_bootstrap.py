import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.evaluate.bootstrap import area_under_curve, differences, intervals, mean, plain

SEED = 3


def one(values, samples=2000, confidence=0.95, seed=SEED):
    return intervals({"m": mean(values)}, len(values), samples, confidence, seed)["m"]


def test_the_interval_of_a_mean_is_the_closed_form() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    found = one(values, samples=20000)
    error = values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert found.low == pytest.approx(
        values.mean() - 1.96 * error, abs=0.05 * error
    )  # measured 0.02 of the error
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.05 * error)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    inside = 0
    for trial in range(300):
        found = one(
            (generator.random(100) < 0.3).astype(float), samples=300, confidence=0.9, seed=trial
        )
        inside += found.low <= 0.3 <= found.high
    assert (
        0.85 <= inside / 300 <= 0.96
    )  # measured 0.937; the values are counts, so the ends are generous


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    values = np.random.default_rng(2).random(50)
    assert one(values) == one(values)
    assert one(values) != one(values, seed=SEED + 1)


def test_blocks_do_not_show() -> None:
    values = np.random.default_rng(2).random(3000)  # 3 blocks of 2^21 draws
    found = one(values, samples=2000)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(
        2 * 1.96 * values.std() / np.sqrt(3000), rel=0.08
    )  # measured 0.043


def test_texts_of_an_image_are_drawn_together() -> None:
    hits, texts = np.array([5, 0, 1]), np.array([5, 5, 1])
    found = intervals({"share": mean(hits, texts)}, 3, 2000, 0.9999, SEED)["share"]
    assert found.value == pytest.approx(6 / 11)
    assert (found.low, found.high) == (0.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=20))
def test_the_area_is_the_share_of_pairs_won(texts: list[tuple[bool, int]]) -> None:
    positive = np.array([p for p, _ in texts])
    scores = np.array([s for _, s in texts], dtype=float)
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, p in zip(scores, positive, strict=True)
        for b in scores[~positive]
        if p
    ]
    area = area_under_curve(positive, ~positive, scores, np.arange(len(texts)))(
        np.ones((1, len(texts)))
    )[0]
    assert area == pytest.approx(np.mean(pairs)) if pairs else np.isnan(area)


def test_the_area_counts_an_image_as_often_as_it_was_drawn() -> None:
    scores, positive = np.array([0.9, 0.2, 0.5]), np.array([True, True, False])
    area = area_under_curve(positive, ~positive, scores, np.arange(3))
    assert area(np.array([[1.0, 1.0, 1.0], [3.0, 1.0, 2.0], [0.0, 1.0, 1.0]])) == pytest.approx(
        [0.5, 0.75, 0.0]
    )


def test_texts_of_neither_class_do_not_count() -> None:
    scores, positive, negative = np.array([3.0, 2.0, 1.0]), np.array([1, 0, 0]), np.array([0, 0, 1])
    assert area_under_curve(positive, negative, scores, np.arange(3))(np.ones((1, 3))) == [1.0]


def test_an_undefined_value_is_null() -> None:
    nothing = intervals({"precision": mean([0.0, 0.0], [0.0, 0.0])}, 2, 10, 0.95, SEED)["precision"]
    assert plain(nothing) == {"value": None, "low": None, "high": None}


def test_a_model_does_not_differ_from_itself() -> None:
    values = np.random.default_rng(4).random(80)
    found = differences({"m": mean(values)}, {"m": mean(values)}, 80, 500, 0.95, SEED)["m"]
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_pairs_see_what_two_intervals_cannot() -> None:
    generator = np.random.default_rng(5)
    hard = generator.normal(0, 1, 200)
    before, after = (
        hard + generator.normal(0, 0.05, 200),
        hard + 0.05 + generator.normal(0, 0.05, 200),
    )
    found = differences({"m": mean(before)}, {"m": mean(after)}, 200, 1000, 0.95, SEED)["m"]
    assert found.low > 0
    assert found.p == pytest.approx(2 / 1001)
    assert one(before).high > one(after).low


def test_the_p_value_of_no_difference_is_uniform() -> None:
    generator = np.random.default_rng(6)
    p = []
    for trial in range(300):
        before, after = generator.normal(0, 1, (2, 60))
        p.append(differences({"m": mean(before)}, {"m": mean(after)}, 60, 200, 0.95, trial)["m"].p)
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09  # measured 0.04
    assert 0.4 <= np.mean(p) <= 0.6  # measured 0.51


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        intervals({"m": mean([])}, 0, 10, 0.95, SEED)
