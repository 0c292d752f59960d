"""Agreement equals that of scikit-learn and SciPy, on values with and without ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from blip.errors import DataError
from blip.metrics.agreement import kendall_tau_b, kendall_tau_c, roc_auc, spearman

CORRELATIONS = {
    kendall_tau_b: lambda x, y: stats.kendalltau(x, y, variant="b").statistic,
    kendall_tau_c: lambda x, y: stats.kendalltau(x, y, variant="c").statistic,
    spearman: lambda x, y: stats.spearmanr(x, y).statistic,
}

seeds = st.integers(0, 10_000)


def draw(seed: int, size: int, x_levels: int, y_levels: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, y_levels, size).astype(float)
    x = generator.integers(0, x_levels, size) + 0.5 * y
    x[0], x[-1], y[0], y[-1] = -1, 99, -1, 99  # neither side is constant
    return x, y


@pytest.mark.parametrize("ours", CORRELATIONS, ids=lambda function: function.__name__)
@given(seeds, st.integers(2, 60), st.integers(1, 60), st.integers(1, 6))
def test_correlations_equal_those_of_scipy(ours, seed, size, x_levels, y_levels) -> None:
    x, y = draw(seed, size, x_levels, y_levels)
    # Measured 4e-16.
    assert float(ours(x, y)) == pytest.approx(CORRELATIONS[ours](x, y), abs=1e-12)


@pytest.mark.parametrize("ours", CORRELATIONS, ids=lambda function: function.__name__)
def test_correlations_of_many_continuous_scores(ours) -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(1, 5, 5000)
    x = generator.standard_normal(5000) + 0.3 * y
    assert float(ours(x, y)) == pytest.approx(CORRELATIONS[ours](x, y), abs=1e-12)
    assert float(ours(y, x)) == pytest.approx(float(ours(x, y)), abs=1e-12)


@given(seeds, st.integers(2, 40), st.integers(1, 40))
def test_auc_equals_that_of_scikit_learn(seed, size, levels) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, size)
    labels[:2] = 0, 1
    scores = generator.integers(0, levels, size) / levels
    assert float(roc_auc(labels, scores)) == pytest.approx(
        metrics.roc_auc_score(labels, scores), abs=1e-12
    )


@pytest.mark.parametrize("ours", [*CORRELATIONS, roc_auc], ids=lambda function: function.__name__)
@given(seeds)
def test_a_pair_that_counts_twice_stands_twice(ours, seed) -> None:
    x, y = draw(seed, 20, 10, 4)
    if ours is roc_auc:
        x = x > 5
    draws = np.random.default_rng(seed).integers(0, 3, (4, 20))
    draws[:, [0, -1]] = 1
    plain = [float(ours(np.repeat(x, row), np.repeat(y, row))) for row in draws]
    np.testing.assert_allclose(ours(x, y, draws), plain, atol=1e-12)


def test_what_is_undefined_or_not_a_number() -> None:
    assert np.isnan(roc_auc([1, 1], [0.2, 0.3]))
    assert np.isnan(kendall_tau_b([1, 1, 1], [1, 2, 3]))
    for ours in (*CORRELATIONS, roc_auc):
        with pytest.raises(DataError, match="score 1 of 2 is not a number"):
            ours([1, 0], [0.5, np.nan])
    with pytest.raises(DataError, match="each needs the other"):
        spearman([1, 2], [1, 2, 3])
