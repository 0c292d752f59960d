"""One process; what two do is in golden/test_two_processes.py."""

import pytest
import torch
import torch.distributed as dist  # noqa: TID251

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


@pytest.mark.parametrize("shape", [(7, 3), (8, 4), (1, 5), (2, 1)])
@pytest.mark.parametrize("how", ["s0", "s1", "r s0", "s0 r", "s0 s1", "s0 s0", "r r"])
def test_the_parts_of_all_processes_are_the_whole(shape, how):
    """Every element is stored once, whatever the mesh of 4 processes."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: TID251
    from torch.testing._internal.distributed.fake_pg import FakeStore

    whole = torch.arange(shape[0] * shape[1]).reshape(shape)
    placements = [Replicate() if axis == "r" else Shard(int(axis[1])) for axis in how.split()]
    found = torch.zeros(shape, dtype=torch.int64)
    times = torch.zeros(shape, dtype=torch.int64)
    for rank in range(4):
        # A group of one process that believes in the others: layouts need no exchange.
        dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
        try:
            sizes = (4,) if len(placements) == 1 else (2, 2)
            mesh = dist.init_device_mesh("cpu", sizes)
            tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            part = distributed.part_of(tensor)
        finally:
            dist.destroy_process_group()
        lengths = zip(part.offsets, part.local.shape, strict=True)
        place = tuple(slice(offset, offset + length) for offset, length in lengths)
        assert torch.equal(part.local, whole[place])
        if part.stores:
            found[place] = part.local
            times[place] += 1
    assert torch.equal(found, whole)
    assert (times == 1).all()
