"""One process; what two do is in golden/test_two_processes.py."""

import torch

from blip import distributed


def test_without_a_process_group_a_process_is_alone():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    rows = torch.randn(3, 2, requires_grad=True)
    (gathered,) = distributed.all_gather(rows)
    assert torch.equal(gathered, rows)
    assert not gathered.requires_grad
    assert distributed.all_gather_with_grad(rows) is rows
    assert torch.equal(distributed.all_gather_padded(rows, 0), rows)
