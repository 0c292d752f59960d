import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.models.matching import Texts

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(lengths, st.data())
def test_every_text_comes_once_and_whole_the_shortest_first(sizes: list[int], data) -> None:
    mask = (torch.arange(9) < torch.tensor(sizes)[:, None]).long()
    texts = Texts(torch.arange(9 * len(sizes)).view(-1, 9) * mask, mask)
    rows = torch.tensor(
        data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=20)), dtype=torch.int64
    )
    seen, longest = [], 0
    for places, ids, mask in texts.batches(rows, data.draw(st.integers(1, 5))):
        assert ids.shape == mask.shape
        assert mask.sum(1).max() == ids.shape[1]  # no more padding than needed
        assert longest <= mask.sum(1).min()
        longest = ids.shape[1]
        for place, row in zip(places.tolist(), ids, strict=True):
            seen.append(place)
            expected = texts.token_ids[rows[place]]
            assert row.tolist() == expected[: len(row)].tolist()
            assert not expected[len(row) :].any()
    assert sorted(seen) == list(range(len(rows)))
