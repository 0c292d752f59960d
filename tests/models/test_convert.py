import pytest
import torch

from blip.errors import CheckpointError
from blip.models.convert import from_official, official_names
from blip.models.momentum import MomentumTwin


@pytest.mark.parametrize("parts", ["pretrain", "captioning", "retrieval"])
def test_every_parameter_has_its_own_official_names(build, parts):
    model = build(parts)
    theirs = [name for ours in model.state_dict() for name in official_names(ours)]
    assert len(set(theirs)) == len(theirs)
    prefixes = {name.split(".")[0] for name in theirs}
    heads = {"visual_encoder", "vision_proj", "text_proj", "itm_head", "temp", "text_encoder"}
    expected = {
        "pretrain": heads | {"text_decoder"},
        "captioning": {"visual_encoder", "text_decoder"},
        "retrieval": heads,
    }
    assert prefixes == expected[parts]


def test_the_twins_names(build):
    twin = MomentumTwin(build("retrieval"), 0.995)
    names = {name for ours in twin.state_dict() for name in official_names(ours, twin=True)}
    assert "visual_encoder_m.blocks.0.attn.qkv.weight" in names
    assert "text_encoder_m.encoder.layer.1.crossattention.self.key.bias" in names
    assert "vision_proj_m.weight" in names
    assert "visual_encoder_m.pos_embed" in names


def test_what_is_missing_is_named(build):
    model = build("captioning")
    tensors = {}
    for ours, tensor in model.state_dict().items():
        names = official_names(ours)
        parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
        tensors |= dict(zip(names, parts, strict=True))
    for ours, tensor in from_official(model, tensors, "there").items():
        assert torch.equal(tensor, model.state_dict()[ours])
    del tensors["visual_encoder.cls_token"]
    with pytest.raises(CheckpointError, match=r"there: missing visual_encoder\.cls_token"):
        from_official(model, tensors, "there")
