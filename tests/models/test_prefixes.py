import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blip import config
from blip.models.med import TextTransformer
from blip.models.prefixes import find_prefixes

DOUBLE = 1e-10  # measured: 1.7e-15
START = 49
SIZES = config.Text(
    width=16, num_layers=2, num_heads=2, intermediate=32, max_positions=12, dropout=0.0
)
# Few pieces: texts begin alike, go on from each other, or are the same.
TEXTS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=8)


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad texts that begin with a token of their own, which is to be read as another."""
    length = max(map(len, rows)) + 1
    ids = torch.tensor([[7, *row, *[0] * (length - 1 - len(row))] for row in rows])
    return ids, (ids != 0).long()


@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_each_prefix_is_found_once(groups: list[list[list[int]]]) -> None:
    rows = [row for group in groups for row in group]
    owner = [number for number, group in enumerate(groups) for _ in group]
    ids, mask = padded(rows)
    found = find_prefixes(ids, mask, torch.tensor(owner), len(groups), START)
    tokens = torch.cat(found.token_ids).tolist()
    names = [
        (path[0], *(tokens[i] for i in path)) for level in found.paths for path in level.tolist()
    ]
    assert len(set(names)) == len(names) == len(tokens) == len(found.slots)
    expected = {
        (o, START, *row[:n]) for o, row in zip(owner, rows, strict=True) for n in range(len(row))
    }
    assert set(names) == expected
    for o, row, before in zip(owner, rows, found.before.tolist(), strict=True):
        assert [names[i] for i in before[: len(row)]] == [
            (o, START, *row[:n]) for n in range(len(row))
        ]
    hidden = torch.arange(len(names))[:, None, None]
    together = found.by_memory(hidden)
    assert torch.equal(found.in_order(together), hidden)
    for memory, members in enumerate(together.flatten(1).tolist()):
        mine = {i for i, name in enumerate(names) if name[0] == memory}
        assert set(members[: len(mine)]) == mine


@settings(max_examples=30)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(0, 3), st.data())
def test_states_are_those_of_whole_texts(
    groups: list[list[list[int]]], seed: int, data: st.DataObject
) -> None:
    torch.manual_seed(seed)
    model = TextTransformer(SIZES, 50, 24).eval().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    readable = [data.draw(st.integers(1, 5)) for _ in groups]
    memory_mask = torch.arange(5) < torch.tensor(readable)[:, None]
    memory = model.project(torch.randn(len(groups), 5, 24).double(), memory_mask)
    ids, mask = padded([row for group in groups for row in group])
    owner = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    found = find_prefixes(ids, mask, owner, len(groups), START)
    states = model.read_prefixes(found, memory)
    ids[:, 0] = START
    expected = model(ids[:, :-1], None, memory, owner, causal=True)
    counted = mask[:, 1:].bool()
    difference = states[found.before[counted]] - expected[counted]
    assert difference.abs().max() < DOUBLE
