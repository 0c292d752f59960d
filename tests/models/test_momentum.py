import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.models.momentum import NO_IMAGE, FeatureQueue, MomentumTwin


def test_twin_follows_in_closed_form(build):
    model = build("retrieval")
    twin = MomentumTwin(model, 0.9)
    start = twin.text_projection.weight.clone()
    with torch.no_grad():
        model.text_projection.weight.add_(1.0)
    for _ in range(5):
        twin.update(model)
    expected = start + (1 - 0.9**5)  # p_n - p_0 = (1 - m^n) (p - p_0)
    torch.testing.assert_close(twin.text_projection.weight, expected, atol=1e-6, rtol=0)
    assert not any(p.requires_grad for p in twin.parameters())


def test_twin_embeds_as_its_model_does(build):
    model = build("pretrain")
    twin = MomentumTwin(model, 0.995).eval()
    images, ids = torch.randn(2, 3, 64, 64), torch.randint(5, 400, (2, 6))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        image_embed = model.embed_image(model.encode_image(images))
        text_embed = model.embed_text(model.encode_text(ids, mask))
    ours = twin.embed_image(images), twin.embed_text(ids, mask)
    torch.testing.assert_close(ours[0], image_embed, atol=1e-6, rtol=0)  # measured: 1.2e-7
    torch.testing.assert_close(ours[1], text_embed, atol=1e-6, rtol=0)  # measured: 6e-8
    assert not ours[0].requires_grad


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.lists(st.integers(1, 17), min_size=1, max_size=6))
def test_queue_is_a_ring_for_any_batch(size, batches):
    queue = FeatureQueue(2, size)
    ring: list[int] = [NO_IMAGE] * size
    place = number = 0
    for count in batches:
        ids = torch.arange(number, number + count)
        queue.enqueue(ids[:, None].repeat(1, 2).float(), -ids[:, None].repeat(1, 2).float(), ids)
        for value in ids.tolist():
            ring[place] = value
            place = (place + 1) % size
        number += count
        assert queue.image_ids.tolist() == ring
        assert queue.position.item() == place
    for row, value in enumerate(ring):
        if value != NO_IMAGE:
            assert queue.images[row].tolist() == [value, value]
            assert queue.texts[row].tolist() == [-value, -value]


def test_queue_begins_as_unit_noise_of_no_image():
    queue = FeatureQueue(8, 5)
    torch.testing.assert_close(queue.images.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(queue.texts.norm(dim=1), torch.ones(5))
    assert (queue.image_ids == NO_IMAGE).all()
    assert set(queue.state_dict()) == {"images", "texts", "image_ids", "position"}
