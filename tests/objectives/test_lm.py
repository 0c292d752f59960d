import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from blip.objectives.lm import lm_loss


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(3, 9), min_size=1, max_size=4),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 2**31),
)
def test_loss_is_that_over_all_positions_with_ignored_labels(lengths, prompt, smoothing, seed):
    torch.manual_seed(seed)
    head = nn.Linear(6, 11)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(11, mask.shape) * mask
    hidden = torch.randn(*mask.shape, 6)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :prompt] = -100
    expected = functional.cross_entropy(
        head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=smoothing
    )
    loss = lm_loss(hidden[:, :-1], ids, mask, head, smoothing, prompt)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)  # measured: 2e-7


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_head_is_called_on_counted_positions_alone(dtype):
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).to(dtype)
    kept, calls = mask.clone(), []

    def head(hidden):
        calls.append(len(hidden))
        return torch.zeros(len(hidden), 5, requires_grad=True)

    lm_loss(torch.zeros(2, 3, 2), torch.ones(2, 4, dtype=torch.int64), mask, head, 0.1, 2)
    assert calls == [3]
    assert torch.equal(mask, kept)
