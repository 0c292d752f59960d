import pytest
import torch

from blip.models.gradcam import grad_cam

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 7, 3, 0, 0]])
MASK = (IDS != 0).long()


def test_maps_are_attention_times_its_gradient(build):
    model = build("retrieval")
    images = torch.randn(2, 3, 64, 64)
    found = grad_cam(model, images, IDS, MASK, layer=0)
    torch.testing.assert_close(found.attention.sum(-1), torch.ones(found.attention.shape[:-1]))
    expected = (found.attention * found.gradient.clamp(min=0)).mean(1)[0, 1, 1:].view(4, 4)
    torch.testing.assert_close(found.per_token[0, 1], expected)
    assert (found.per_token[1, 3:] == 0).all()
    torch.testing.assert_close(found.mean[0], found.per_token[0, 1:4].mean(0))
    torch.testing.assert_close(found.mean[1], found.per_token[1, 1])


def test_looking_changes_nothing(build):
    model = build("matching")
    images = torch.randn(2, 3, 64, 64)
    before = model.match(IDS, MASK, model.project_images(model.encode_image(images)))
    with torch.no_grad():
        grad_cam(model, images, IDS, MASK, layer=1)
    assert all(parameter.grad is None for parameter in model.parameters())
    after = model.match(IDS, MASK, model.project_images(model.encode_image(images)))
    assert torch.equal(before, after)


def test_a_layer_that_is_not_there(build):
    with pytest.raises(ValueError, match="layer 9 of a text encoder with the layers 0 to"):
        grad_cam(build("matching"), torch.zeros(2, 3, 64, 64), IDS, MASK, layer=9)
