import json
import math
from pathlib import Path

import pytest
import torch

from blip.batch import SpecialTokens
from blip.config import PRESETS, load_config
from blip.errors import CheckpointError
from blip.models.blip import Blip
from blip.models.convert import (
    HAS_MOMENTUM,
    TWIN,
    from_official,
    new_momentum,
    official_names,
    to_official,
)
from blip.models.momentum import MomentumTwin
from blip.models.salesforce import Heads, Sizes, recognise

PARTS = {
    "BLIP_Base": "features",
    "BLIP_Decoder": "captioning",
    "BLIP_ITM": "matching",
    "BLIP_NLVR": "nlvr",
    "BLIP_Pretrain": "pretrain",
    "BLIP_Retrieval": "retrieval",
    "BLIP_VQA": "vqa",
}
SIZES = {"base": "base_14m", "large": "large_129m"}


def listed(shared: Path, name: str) -> dict[str, tuple[str, str]]:
    """Names, shapes and types of a class of the reference."""
    lines = (shared / "golden" / "keys" / f"official_{name}.txt").read_text().splitlines()
    return {key: (shape, dtype) for key, shape, dtype in (line.split("\t") for line in lines)}


def blank(shared: Path, kind: str, size: str) -> Blip:
    """The model of a class, by the preset of its size, without memory for its weights."""
    tokens = int(listed(shared, f"{kind}_{size}")["visual_encoder.pos_embed"][0].split(", ")[1])
    image_size = math.isqrt(tokens - 1) * 16
    special = SpecialTokens(pad=0, cls=101, sep=102, dec=30522, enc=30523)
    with torch.device("meta"):
        sizes = load_config(PRESETS / f"{SIZES[size]}.yaml").model
        return Blip(sizes, image_size, 30524, special, PARTS[kind])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", PARTS)
def test_every_key_shape_and_type_of_the_reference(
    shared: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: str
) -> None:
    monkeypatch.setenv("BLIP_DATA", "unread")
    model = blank(shared, kind, size)
    with torch.device("meta"):
        momentum = new_momentum(model) if model.parts in HAS_MOMENTUM else None
    state = to_official(model, momentum)
    ours = {
        name: (str(tuple(t.shape)), str(t.dtype).removeprefix("torch."))
        for name, t in state.items()
    }
    assert ours == listed(shared, f"{kind}_{size}")
    assert recognise(state) == model.parts
    read = Sizes(state, "there", str)
    sizes = model.config.model_dump(exclude={"vision_weights", "text_weights", "init_std"})
    sizes["vision"]["checkpoint_layers"] = 0  # how to train it is not in it
    read_sizes = read.model(Heads()).model_dump(
        exclude={"vision_weights", "text_weights", "init_std"}
    )
    assert read_sizes == sizes
    assert (read.image_size, read.vocab_size) == (model.image_size, model.vocab_size)
    counts = json.loads((shared / "golden" / "keys" / "parameter_counts.json").read_text())
    trainable = sum(p.numel() for p in model.parameters())
    twin = sum(p.numel() for n, p in model.named_parameters() if n.split(".")[0] in TWIN)
    assert counts[f"{kind}_{size}"] == {
        "keys": len(state),
        "trainable": trainable,
        "parameters_unique": trainable + (twin if momentum else 0),
        "elements_in_state_dict": sum(t.numel() for t in state.values()),
    }


@pytest.mark.parametrize("parts", PARTS.values())
def test_there_and_back_is_the_same(build, parts):
    model = build(parts)
    state = from_official(model, to_official(model, None), "there")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


@pytest.mark.parametrize("parts", PARTS.values())
def test_every_parameter_has_its_own_official_names(build, parts):
    theirs = [name for ours in build(parts).state_dict() for name in official_names(ours)]
    assert len(set(theirs)) == len(theirs)


def test_the_twins_names(build):
    twin = MomentumTwin(build("retrieval"), 0.995)
    names = {name for ours in twin.state_dict() for name in official_names(ours, twin=True)}
    assert "visual_encoder_m.blocks.0.attn.qkv.weight" in names
    assert "text_encoder_m.encoder.layer.1.crossattention.self.key.bias" in names
    assert "vision_proj_m.weight" in names
    assert "visual_encoder_m.pos_embed" in names


def test_new_momentum_is_the_weights_and_the_same_noise_every_time(build):
    model = build("retrieval")
    before = torch.get_rng_state()
    momentum = new_momentum(model, queue_size=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(momentum["twin.vision.cls_token"], model.vision.cls_token)
    again = new_momentum(model, queue_size=8)["queue.images"]
    assert torch.equal(momentum["queue.images"], again)
    torch.testing.assert_close(again.norm(dim=1), torch.ones(8))
    assert not torch.equal(momentum["queue.images"], momentum["queue.texts"])


def test_what_is_missing_or_misshapen_is_named(build):
    model = build("captioning")
    tensors = to_official(model, None)
    del tensors["visual_encoder.cls_token"]
    key = "text_decoder.bert.encoder.layer.0.attention.self.key.bias"
    tensors[key] = tensors[key][:5]
    wrong = rf"^there: missing visual_encoder\.cls_token; {key} of shape \(5,\), expected \(\d+,\)$"
    with pytest.raises(CheckpointError, match=wrong):
        from_official(model, tensors, "there")
    tensors = {name: tensor for name, tensor in tensors.items() if "text_decoder" not in name}
    with pytest.raises(CheckpointError, match=r"missing .*; and \d+ more$"):
        from_official(model, tensors, "there")


def test_new_momentum_moves_no_generator(monkeypatch) -> None:
    """Nor those of GPUs, which a run has seeded before it reads a model."""
    model = Blip(
        load_config(PRESETS / "demo.yaml").model,
        64,
        402,
        SpecialTokens(0, 2, 3, 400, 401),
        "retrieval",
    )
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds GPUs"))
    before = torch.get_rng_state()
    first, second = new_momentum(model, 5), new_momentum(model, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["queue.images"], second["queue.images"])
