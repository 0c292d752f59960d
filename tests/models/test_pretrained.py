"""Starting weights against the models of timm and transformers that they were written from."""

import logging
import pickle
from pathlib import Path

import pytest
import torch

from blip import config
from blip.batch import SpecialTokens
from blip.config import PRESETS, load_config
from blip.errors import CheckpointError, ConfigError
from blip.models import pretrained
from blip.models.blip import Blip
from blip.models.pretrained import find_weights, load_text_weights, load_vision_weights
from blip.models.vit import VisionTransformer

IMAGE_SIZE = 48
VISION = config.Vision(
    patch_size=16, width=32, num_layers=2, num_heads=4, drop_path=0.0, checkpoint_layers=0
)
TEXT = config.Text(
    width=32, num_layers=2, num_heads=4, intermediate=64, max_positions=20, dropout=0.0
)
SIZES = config.Model(
    vision=VISION, text=TEXT, embed_size=8, init_std=0.1, vision_weights=None, text_weights=None
)
NUM_WORDS = 50


@pytest.fixture(scope="module", autouse=True)
def _seed():
    torch.manual_seed(3)


def build_blip(vocab_size=NUM_WORDS + 2, sizes=SIZES):
    special = SpecialTokens(pad=0, cls=2, sep=3, dec=vocab_size - 2, enc=vocab_size - 1)
    return Blip(sizes, IMAGE_SIZE, vocab_size, special, "pretrain").eval()


@torch.no_grad()
def blur(model):
    """Make every tensor its own, so that none can be mistaken for another or be forgotten."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def timm_vit():
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    sizes = {"embed_dim": VISION.width, "depth": 2, "num_heads": 4, "patch_size": 16}
    return blur(TimmVisionTransformer(img_size=IMAGE_SIZE, num_classes=5, **sizes))


def make_bert(kind="BertForPreTraining", **changes):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 20, "vocab_size": NUM_WORDS}
    return blur(getattr(transformers, kind)(transformers.BertConfig(**(sizes | changes))))


@pytest.fixture(scope="module")
def bert():
    return make_bert()


def write(state, path):
    torch.save(state, path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("form", ["plain.pth", "model.pth", "model.safetensors"])
def test_the_image_encoder_is_timms(timm_vit, tmp_path, form):
    from safetensors.torch import save_file

    path = tmp_path / form
    if form == "model.safetensors":
        save_file(timm_vit.state_dict(), path)
    else:
        write(
            {"model": timm_vit.state_dict()} if form == "model.pth" else timm_vit.state_dict(), path
        )
    vision = VisionTransformer(VISION, IMAGE_SIZE).eval()
    load_vision_weights(vision, path)
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    expected = timm_vit.forward_features(images)
    torch.testing.assert_close(vision(images), expected, atol=1e-5, rtol=0)  # measured: 0


def test_another_image_size_resamples_the_positions(timm_vit, tmp_path):
    from timm.layers import resample_abs_pos_embed

    vision = VisionTransformer(VISION, 80)
    load_vision_weights(vision, write(timm_vit.state_dict(), tmp_path / "vit.pth"))
    expected = resample_abs_pos_embed(timm_vit.pos_embed, [5, 5], antialias=False)
    torch.testing.assert_close(
        vision.position_embedding, expected, atol=1e-6, rtol=0
    )  # measured: 0


def inputs():
    token_ids = torch.randint(0, NUM_WORDS, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [2]])).long()
    return token_ids, mask


@torch.no_grad()
def test_both_text_stacks_are_bert_without_its_segments(bert, tmp_path):
    model = build_blip()
    load_text_weights(model, write(bert.state_dict(), tmp_path / "bert.bin"))
    reference = make_bert("BertForPreTraining")
    reference.load_state_dict(bert.state_dict())
    reference.bert.embeddings.token_type_embeddings.weight.zero_()
    token_ids, mask = inputs()
    expected = reference.bert(token_ids, attention_mask=mask).last_hidden_state
    for stack in (model.text_encoder, model.text_decoder):
        hidden = stack(token_ids, mask)
        torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)  # measured: 0
    logits = model.predict(expected)
    theirs = reference.cls.predictions(expected)
    torch.testing.assert_close(logits[..., :-2], theirs, atol=1e-5, rtol=0)  # measured: 0


@torch.no_grad()
def test_what_bert_lacks_stays_as_it_was_drawn(bert, tmp_path):
    model = build_blip()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_text_weights(model, write(bert.state_dict(), tmp_path / "bert.bin"))
    after = model.state_dict()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    elsewhere = ("vision.", "image_projection.", "text_projection.", "match_head.", "temperature")
    assert kept == {n for n in before if n.startswith(elsewhere) or ".cross_" in n}
    words = "text_encoder.embeddings.words.weight"
    assert torch.equal(before[words][-2:], after[words][-2:])
    assert after[words][-2:].std().item() == pytest.approx(SIZES.init_std, rel=0.3)
    assert after["language_head.bias"][-2:].tolist() == [0.0, 0.0]
    encoder, decoder = model.text_encoder, model.text_decoder
    assert decoder.embeddings is encoder.embeddings
    for ours, theirs in zip(decoder.layers, encoder.layers, strict=True):
        shared = {id(p) for p in ours.parameters()} & {id(p) for p in theirs.parameters()}
        # Cross-attention and MLP with their norms are the same, self-attention with its norm not.
        assert len(shared) == len(list(ours.parameters())) - 6
        assert torch.equal(ours.self_attention.qkv.weight, theirs.self_attention.qkv.weight)
        assert ours.self_attention.qkv.weight is not theirs.self_attention.qkv.weight


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining", "BertModel"])
def test_bert_as_transformers_writes_it(tmp_path, caplog, kind):
    bert = make_bert(kind)
    bert.save_pretrained(tmp_path)
    model = build_blip()
    drawn = model.language_head.transform.weight.clone()
    files = find_weights(SIZES.model_copy(update={"text_weights": str(tmp_path)}))
    with caplog.at_level(logging.WARNING):
        load_text_weights(model, files["text_weights"])
    encoder = bert if kind == "BertModel" else bert.bert
    word = encoder.embeddings.word_embeddings.weight
    assert torch.equal(model.text_encoder.embeddings.words.weight[:-2], word)
    head = model.language_head.transform.weight
    if kind == "BertModel":
        assert torch.equal(head, drawn)
        assert "the language head starts at random" in caplog.text
    else:
        assert torch.equal(head, bert.cls.predictions.transform.dense.weight)
        assert not caplog.records


def test_the_first_names_of_berts_norms(bert, tmp_path):
    def first(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )

    state = {first(name): tensor for name, tensor in bert.state_dict().items()}
    state["bert.embeddings.position_ids"] = torch.arange(20)[None]
    old, new = build_blip(), build_blip()
    new.load_state_dict(old.state_dict())
    load_text_weights(old, write(state, tmp_path / "old.bin"))
    load_text_weights(new, write(bert.state_dict(), tmp_path / "new.bin"))
    assert all(torch.equal(t, new.state_dict()[n]) for n, t in old.state_dict().items())


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_vision_weights_that_do_not_fit(timm_vit, tmp_path):
    vision = VisionTransformer(VISION, IMAGE_SIZE)
    before = [parameter.clone() for parameter in vision.parameters()]
    state = timm_vit.state_dict()
    wider = VisionTransformer(VISION.model_copy(update={"width": 64}), IMAGE_SIZE)
    shallow = VisionTransformer(VISION.model_copy(update={"num_layers": 1}), IMAGE_SIZE)
    distilled = torch.zeros(1, 11, 32)  # a grid of 3 x 3, [CLS] and the token of distillation
    for encoder, changed, message in (
        (vision, without(state, "norm.weight"), "missing norm.weight$"),
        (vision, state | {"dist_token": torch.zeros(1)}, "unexpected dist_token$"),
        (vision, state | {"pos_embed": distilled}, r"pos_embed of shape \(1, 11, 32\), expected"),
        (
            wider,
            state,
            r"blocks.0.attn.proj.bias of shape \(32,\), expected \(64,\).* and \d+ more",
        ),
        (shallow, state, "unexpected blocks.1.attn.proj.bias"),
    ):
        path = write(changed, tmp_path / "vit.pth")
        with pytest.raises(CheckpointError, match=message) as caught:
            load_vision_weights(encoder, path)
        assert str(caught.value).startswith(f"{path}: ")
    assert all(map(torch.equal, before, vision.parameters()))


def test_text_weights_that_do_not_fit(bert, tmp_path):
    state = bert.state_dict()
    query = "bert.encoder.layer.1.attention.self.query.weight"
    other = state["cls.predictions.decoder.weight"] + 1
    narrow = SIZES.model_copy(update={"text": TEXT.model_copy(update={"intermediate": 32})})
    for model, changed, message in (
        (build_blip(), without(state, query), f"missing {query}$"),
        (build_blip(), without(state, "cls.predictions.bias"), "decoder.bias is not equal to"),
        (build_blip(), state | {"lm.weight": torch.zeros(2)}, "unexpected lm.weight"),
        (build_blip(), state | {"cls.predictions.decoder.weight": other}, "BLIP ties them"),
        (build_blip(33), state, "embeds 50 tokens, and the tokenizer has 31: let tokenizer.vocab"),
        (build_blip(sizes=narrow), state, r"dense.bias of shape \(64,\), expected \(32,\)"),
    ):
        path = write(changed, tmp_path / "bert.bin")
        with pytest.raises(CheckpointError, match=message) as caught:
            load_text_weights(model, path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


class Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_damaged_and_malicious_files(timm_vit, tmp_path):
    whole = write(timm_vit.state_dict(), tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.safetensors").write_bytes(b"<html>not found</html>")
    write({"cls_token": Malice(tmp_path / "mark")}, tmp_path / "malice.pth")
    pickled = pickle.dumps({"model": Malice(tmp_path / "mark")}, protocol=2)
    (tmp_path / "pickled.bin").write_bytes(pickled)
    for name in ("cut.pth", "page.safetensors", "malice.pth", "pickled.bin"):
        with pytest.raises(CheckpointError, match=f"{name}: is damaged") as caught:
            load_vision_weights(VisionTransformer(VISION, IMAGE_SIZE), tmp_path / name)
        assert "\n" not in str(caught.value)
        with pytest.raises(CheckpointError, match=f"{name}: is damaged"):
            load_text_weights(build_blip(), tmp_path / name)
    assert not (tmp_path / "mark").exists()


def find(**weights):
    return find_weights(SIZES.model_copy(update=weights))


def test_weights_that_lie_here(tmp_path):
    assert find() == {}
    file = tmp_path / "pytorch_model.bin"
    file.touch()
    assert find(text_weights=str(tmp_path)) == {"text_weights": file}
    assert find(vision_weights=str(file)) == {"vision_weights": file}
    with pytest.raises(ConfigError, match=r"model.vision_weights '.*nowhere.pth': no such file"):
        find(vision_weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(ConfigError, match=r"model.text_weights 'nowhere.bin': no such file"):
        find(text_weights="nowhere.bin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"the folder has no model\.safetensors or pytorch_model"):
        find(text_weights=str(tmp_path / "empty"))


@pytest.fixture
def preset(monkeypatch):
    monkeypatch.setenv("BLIP_DATA", "/data")
    return lambda name: load_config(PRESETS / f"{name}.yaml").model


def test_weights_that_lie_on_the_hub(monkeypatch, preset):
    asked = []

    def hub_file(setting, repository, *names):
        asked.append((repository, names))
        return Path(repository)

    monkeypatch.setattr(pretrained, "hub_file", hub_file)
    for name in ("base_14m", "base_129m", "large_129m"):
        assert find_weights(preset(name)).keys() == {"vision_weights", "text_weights"}
    files = ("model.safetensors", "pytorch_model.bin")
    deit, bert = "timm/deit_base_patch16_224.fb_in1k", "bert-base-uncased"
    large = "timm/vit_large_patch16_224.augreg_in21k"
    assert asked == [(r, files) for r in (deit, bert, deit, bert, large, bert)]
    for name in ("deit_of_nobody", "deit_base_patch16_224.of_nobody"):
        with pytest.raises(ConfigError, match=f"model.vision_weights '{name}': ") as caught:
            find(vision_weights=name)
        assert "\n" not in str(caught.value)


def test_the_presets_models_are_timms(preset):
    """The two names stand for models of the presets' sizes and of the paper's weights."""
    import timm

    for name, file in (
        ("base_14m", "deit_base_patch16_224-b5f2ef4d.pth"),
        ("large_129m", "L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1.npz"),
    ):
        sizes = preset(name)
        assert timm.get_pretrained_cfg(sizes.vision_weights).url.endswith(f"/{file}")
        with torch.device("meta"):
            vision = VisionTransformer(sizes.vision, 224)
            theirs = timm.create_model(sizes.vision_weights, num_classes=0)
        shapes = sorted(tuple(p.shape) for p in vision.parameters())
        assert shapes == sorted(tuple(p.shape) for p in theirs.parameters())
        assert theirs.blocks[0].attn.num_heads == sizes.vision.num_heads
