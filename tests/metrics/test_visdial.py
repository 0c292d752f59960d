"""VisDial's scores, by their definitions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import DataError
from blip.metrics.visdial import ndcg, require_ranks, sparse, to_ranks

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


@given(SCORES)
def test_ranks_fall_with_the_score_and_equals_keep_their_order(scores: list[float]) -> None:
    ranks = to_ranks(scores)
    order = sorted(range(len(scores)), key=lambda option: (-scores[option], option))
    assert [ranks[option] for option in order] == list(range(1, len(scores) + 1))
    assert to_ranks([scores, scores]).tolist() == [ranks.tolist()] * 2


def test_a_score_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="a score is not a number"):
        to_ranks([1.0, float("nan")])


def test_sparse_scores() -> None:
    found = {name: values.mean() for name, values in sparse([1, 2, 5, 10, 50]).items()}
    assert found == pytest.approx(
        {
            "mrr": (1 + 0.5 + 0.2 + 0.1 + 0.02) / 5,
            "r1": 0.2,
            "r5": 0.6,
            "r10": 0.8,
            "mean_rank": 13.6,
        }
    )


def test_ndcg_looks_at_as_many_ranks_as_there_are_relevant_options() -> None:
    relevance = [0.0, 1.0, 0.5, 0.0]
    assert ndcg([3, 1, 2, 4], relevance) == 1.0
    best = 1.0 + 0.5 / math.log2(3)
    assert ndcg([1, 2, 3, 4], relevance) == pytest.approx((1.0 / math.log2(3)) / best)
    assert ndcg([1, 3, 4, 2], relevance) == 0.0


@given(
    st.permutations(range(1, 9)), st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=8, max_size=8)
)
def test_ndcg_is_a_share_of_what_the_best_order_gains(ranks, relevance) -> None:
    if not any(relevance):
        with pytest.raises(ValueError, match="no candidate is relevant"):
            ndcg(ranks, relevance)
        return
    count = sum(value != 0 for value in relevance)

    def gain(order: list[int]) -> float:
        return sum(relevance[o] / math.log2(place + 2) for place, o in enumerate(order[:count]))

    ours = sorted(range(8), key=lambda option: ranks[option])
    best = sorted(range(8), key=lambda option: -relevance[option])
    assert ndcg(ranks, relevance) == pytest.approx(gain(ours) / gain(best), abs=1e-12)
    assert ndcg(to_ranks(relevance), relevance) == pytest.approx(1.0)


@pytest.mark.parametrize("ranks", [[1, 2], [1, 2, 2], [0, 1, 2], [1, 2, 4], [1, 2, 3, 4]])
def test_ranks_are_each_number_once(ranks: list[int]) -> None:
    require_ranks([3, 1, 2], 3, "here")
    with pytest.raises(DataError, match=r"here: ranks are .* must be 1 to 3, each once"):
        require_ranks(ranks, 3, "here")
