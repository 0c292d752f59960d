"""The age of the queue, against a queue whose features say when they were computed."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.models.momentum import NO_IMAGE, FeatureQueue
from blip.objectives.contrast import queue_age


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 12), st.integers(1, 9), st.integers(1, 40))
def test_queue_age_is_that_of_a_real_queue(step: int, batch_size: int, size: int) -> None:
    queue = FeatureQueue(2, size)
    for earlier in range(step):
        rows = torch.ones(batch_size, 2)
        queue.enqueue(rows, rows, torch.full((batch_size,), earlier))
    ages = step - queue.image_ids[queue.image_ids != NO_IMAGE].double()
    told = queue_age(step, batch_size, size)
    assert told["queue_filled"] == len(ages) / size
    if len(ages):
        assert told["queue_age_max"] == ages.max()
        torch.testing.assert_close(told["queue_age_mean"], ages.mean().item())
    else:
        assert set(told) == {"queue_filled"}
