import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.objectives.itm import NONE, Negatives, draw_negatives, itm_loss, negative_weights


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.booleans(), st.integers(0, 2**31))
def test_a_negative_is_never_of_the_same_image(ids, uniform, seed):
    torch.manual_seed(seed)
    image_ids = torch.tensor(ids)
    same = image_ids[:, None] == image_ids
    logits = torch.randn(2, len(ids), len(ids)) * 20
    weights = [negative_weights(side, same, 1e-4, uniform) for side in logits]
    negatives = draw_negatives(*weights)
    for drawn in negatives:
        for row, index in enumerate(drawn.tolist()):
            others = [i for i, other in enumerate(ids) if other != ids[row]]
            assert index in others if others else index == NONE


def test_likelier_where_more_similar():
    torch.manual_seed(0)
    logits = torch.tensor([[9.0, 2.0, 0.0]]).expand(4000, -1)
    same = torch.tensor([[True, False, False]]).expand(4000, -1)
    hard = draw_negatives(*[negative_weights(logits, same, 0.0, uniform=False)] * 2).images
    share = (hard == 1).float().mean().item()
    assert share == pytest.approx(2.718281828**2 / (2.718281828**2 + 1), abs=0.03)
    even = draw_negatives(*[negative_weights(logits, same, 0.0, uniform=True)] * 2).images
    assert (even == 1).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_loss_and_accuracy_count_the_rows_that_exist():
    logits = torch.tensor([[0.0, 2.0], [3.0, 0.0], [1.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 1.0]])
    negatives = Negatives(images=torch.tensor([1, 0]), texts=torch.tensor([NONE, 0]))
    loss, accuracy = itm_loss(logits, negatives)
    labels = [(0, 1), (1, 1), (2, 0), (3, 0), (5, 0)]  # row 4 has no negative
    expected = -sum(logits[row].log_softmax(0)[label].item() for row, label in labels) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert accuracy.item() == pytest.approx(3 / 5)
