import pytest
import torch

from blip import config
from blip.models.vit import VisionTransformer, resize_position_embedding


def build(image_size=32, **changes):
    values = {"patch_size": 8, "width": 16, "num_layers": 3, "num_heads": 4}
    values |= {"drop_path": 0.0, "checkpoint_layers": 0}
    torch.manual_seed(0)
    model = VisionTransformer(config.Vision(**(values | changes)), image_size)
    model.initialise(0.1)
    return model


def test_pooled_is_the_cls_token():
    model, images = build(), torch.randn(2, 3, 32, 32)
    pooled = model(images, pooled=True)
    assert pooled.shape == (2, 1, 16)
    torch.testing.assert_close(pooled, model(images)[:, :1], atol=2e-6, rtol=0)  # measured: 5e-7


def test_checkpointed_blocks_have_the_same_gradients():
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for checkpoint_layers in (0, 2):
        model = build(checkpoint_layers=checkpoint_layers, drop_path=0.5)
        torch.manual_seed(1)
        model(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_drop_path_rises_and_keeps_the_mean():
    model = build(num_layers=3, drop_path=0.4)
    assert [block.drop_path for block in model.blocks] == pytest.approx([0.0, 0.2, 0.4])
    torch.manual_seed(0)
    kept = model.blocks[2]._drop_path(torch.ones(20_000, 1, 1))
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)
    model.eval()
    assert torch.equal(model.blocks[2]._drop_path(torch.ones(5, 1, 1)), torch.ones(5, 1, 1))


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="48 x 32 pixels for a model of side 32"):
        build()(torch.zeros(1, 3, 48, 32))
    with pytest.raises(ValueError, match="30 is not a multiple of the patch size 8"):
        build(image_size=30)


def test_initialisation_has_the_configured_spread():
    model = build(width=256, num_layers=1)
    assert model.blocks[0].mlp_up.weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert model.blocks[0].mlp_up.bias.abs().max() == 0
    assert model.position_embedding.std().item() == pytest.approx(0.1, rel=0.1)


def test_resizing_to_the_same_size_changes_nothing():
    embedding = torch.randn(1, 17, 8)
    assert resize_position_embedding(embedding, 17) is embedding
    assert resize_position_embedding(embedding, 37).shape == (1, 37, 8)
    assert torch.equal(resize_position_embedding(embedding, 37)[:, 0], embedding[:, 0])
