"""A tensor is put together from any parts of it."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blip.train.saved import _overlap

Region = tuple[slice, ...]


@st.composite
def cuts(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Region]:
    """Cut a whole along one axis, into parts of any length, some of them empty."""
    axis = draw(st.integers(0, len(shape) - 1))
    inner = draw(st.lists(st.integers(0, shape[axis]), max_size=4))
    edges = [0, *sorted(inner), shape[axis]]
    all_of_it = [slice(0, length) for length in shape]
    return [
        (*all_of_it[:axis], slice(begin, end), *all_of_it[axis + 1 :])
        for begin, end in itertools.pairwise(edges)
    ]


@given(st.data())
def test_any_parts_give_any_other_parts(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple))
    whole = torch.rand(shape)
    stored, wanted = data.draw(cuts(shape)), data.draw(cuts(shape))
    for region in wanted:
        part = torch.full_like(whole, -1)[region]
        for piece in stored:
            here, there = _overlap(offsets(region), part, offsets(piece), whole[piece])
            assert part[here].shape == whole[piece][there].shape
            part[here] = whole[piece][there]
        assert torch.equal(part, whole[region])


def test_a_scalar_is_its_only_part() -> None:
    scalar = Tensor([2.0]).squeeze()
    assert _overlap((), scalar, (), scalar) == ((), ())


def offsets(region: Region) -> tuple[int, ...]:
    return tuple(axis.start for axis in region)
