"""Grad-CAM of the image-text match against the reference's."""

import torch

from blip.models.gradcam import grad_cam

TOLERANCE = 1e-5


def test_maps(golden, tiny_model):
    reference = golden("itm_itc")
    model = tiny_model("matching", reference.under("sd/"))
    (watched,) = [k for k in reference.tensors if k.startswith("out/cross_attn_layer")]
    layer = int(watched.removeprefix("out/cross_attn_layer"))
    ids, mask = reference["in/input_ids"], reference["in/attention_mask"]
    found = grad_cam(model, reference["in/pixel_values"], ids, mask, layer)
    for ours, name in (  # measured: 3.6e-7, 1.2e-6, 4.8e-8, 0
        (found.attention, f"cross_attn_layer{layer}"),
        (found.gradient, f"cross_attn_grad_layer{layer}"),
        (found.per_token, "gradcam_per_token"),
        (found.mean, "gradcam_token_mean"),
    ):
        torch.testing.assert_close(ours, reference[f"out/{name}"], atol=TOLERANCE, rtol=0)
