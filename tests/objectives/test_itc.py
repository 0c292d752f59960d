import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.objectives.itc import hard_targets, itc_loss, soft_targets


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 4), st.floats(0, 1), st.integers(0, 2**31))
def test_loss_is_the_sum_over_pairs(batch, queue, alpha, seed):
    torch.manual_seed(seed)
    logits = torch.randn(4, batch, batch + queue, dtype=torch.float64) * 5
    hard = torch.eye(batch, batch + queue, dtype=torch.float64)
    targets = [soft_targets(momentum, hard, alpha) for momentum in logits[2:]]
    expected = 0.0
    for direction in range(2):
        for row in range(batch):
            believed = logits[2 + direction, row].exp() / logits[2 + direction, row].exp().sum()
            target = alpha * believed + (1 - alpha) * hard[row]
            log_softmax = logits[direction, row] - logits[direction, row].exp().sum().log()
            expected -= float((target * log_softmax).sum()) / batch / 2
    loss = itc_loss(logits[0], logits[1], *targets)
    torch.testing.assert_close(loss.item(), expected, atol=1e-9, rtol=1e-9)


def test_hard_targets_are_even_over_the_pairs_of_an_image():
    targets = hard_targets(torch.tensor([7, 3]), torch.tensor([7, 3, 7, -100, 3, 7]))
    third, half = 1 / 3, 1 / 2
    expected = [[third, 0, third, 0, 0, third], [0, half, 0, 0, half, 0]]
    torch.testing.assert_close(targets, torch.tensor(expected))


def test_soft_targets_are_distributions():
    hard = torch.eye(3, 8)
    targets = soft_targets(torch.randn(3, 8), hard, 0.4)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(3))
    assert torch.equal(soft_targets(torch.randn(3, 8), hard, 0.0), hard)
