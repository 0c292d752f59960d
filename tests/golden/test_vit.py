"""The image encoder against the reference's, to rounding."""

import pytest
import torch

from blip import config
from blip.models.convert import official_names
from blip.models.vit import VisionTransformer, resize_position_embedding

TOLERANCE = 1e-5  # measured: 1.4e-6 (image_embeds_96)


@pytest.fixture
def vit(golden):
    reference = golden("vit_tiny")
    recorded = reference.meta["config"]
    sizes = config.Vision(
        patch_size=recorded["patch_size"],
        width=recorded["embed_dim"],
        num_layers=recorded["depth"],
        num_heads=recorded["num_heads"],
        drop_path=0,
        checkpoint_layers=0,
    )

    def build(image_size=recorded["img_size"]):
        model = VisionTransformer(sizes, image_size)
        state = {}
        for name in model.state_dict():
            (theirs,) = official_names(f"vision.{name}")
            state[name] = reference["sd/" + theirs.removeprefix("visual_encoder.")]
        num_tokens = model.position_embedding.shape[1]
        state["position_embedding"] = resize_position_embedding(
            state["position_embedding"], num_tokens
        )
        model.load_state_dict(state)
        return model.eval()

    return reference, build


def test_every_stage(vit):
    reference, build = vit
    model = build()
    patches = model.embed(reference["in/pixel_values"])[:, 1:] - model.position_embedding[:, 1:]
    torch.testing.assert_close(patches, reference["out/patch_embed"], atol=TOLERANCE, rtol=0)
    tokens = model.embed(reference["in/pixel_values"])
    torch.testing.assert_close(tokens, reference["out/embeddings"], atol=TOLERANCE, rtol=0)
    for number, block in enumerate(model.blocks):
        tokens = block(tokens)
        expected = reference[f"out/block{number}"]
        torch.testing.assert_close(tokens, expected, atol=TOLERANCE, rtol=0)
    output = model(reference["in/pixel_values"])
    torch.testing.assert_close(output, reference["out/image_embeds"], atol=TOLERANCE, rtol=0)


def test_gradient_reaches_the_pixels(vit):
    reference, build = vit
    pixels = reference["in/pixel_values"].clone().requires_grad_()
    build()(pixels).square().mean().backward()
    expected = reference["out/grad_pixel_values_of_mean_square"]
    torch.testing.assert_close(pixels.grad, expected, atol=TOLERANCE, rtol=0)


def test_other_sizes_resample_the_positions(vit):
    reference, build = vit
    sizes = reference.under("in/pixel_values_")
    assert sizes
    for size, pixels in sizes.items():
        model = build(pixels.shape[-1])
        positions = reference[f"out/pos_embed_{size}"]
        torch.testing.assert_close(model.position_embedding.data, positions, atol=TOLERANCE, rtol=0)
        expected = reference[f"out/image_embeds_{size}"]
        torch.testing.assert_close(model(pixels), expected, atol=TOLERANCE, rtol=0)
