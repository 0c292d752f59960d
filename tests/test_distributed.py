"""One process; what two do is in golden/test_two_processes.py."""

import torch

from blip import distributed


def test_without_a_process_group_a_process_is_alone():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    rows = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(distributed.all_gather(rows), rows)
    assert not distributed.all_gather(rows).requires_grad
    assert distributed.all_gather_with_grad(rows) is rows
    assert torch.equal(distributed.all_gather_padded(rows, 0), rows)


def test_alone_a_process_holds_all_and_hears_itself():
    tensor = torch.randn(3, 2, requires_grad=True)
    part = distributed.part_of(tensor)
    assert (part.offsets, part.stores) == ((0, 0), True)
    assert part.local.data_ptr() == tensor.data_ptr()
    assert not part.local.requires_grad
    assert distributed.Channel().gather("word") == ["word"]
