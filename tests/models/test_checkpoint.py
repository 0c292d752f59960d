import json
from typing import get_args

import pytest
import safetensors.torch
import torch

from blip.config import PRESETS, load_config
from blip.errors import BlipError, CheckpointError, ConfigError
from blip.models.checkpoint import (
    Kind,
    load_model,
    load_momentum,
    read_checkpoint,
    save_model,
    write_checkpoint,
)
from blip.models.convert import new_momentum
from blip.models.salesforce import NO_HEADS, Checkpoint, Heads
from blip.objectives.contrast import MomentumContrast

IMAGES = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
IDS = torch.tensor([[2, 7, 8, 3]])


@pytest.fixture
def saved(build, tmp_path):
    model = build("pretrain")
    save_model(model, tmp_path)
    return model, tmp_path


def rewrite(path, change):
    tensors = safetensors.torch.load((path / "model.safetensors").read_bytes())
    change(tensors)
    (path / "model.safetensors").write_bytes(safetensors.torch.save(tensors))


def test_what_is_loaded_is_what_was_saved(saved):
    model, path = saved
    loaded = load_model(path).eval()
    assert loaded.parts == "pretrain" and loaded.special == model.special  # noqa: PT018
    assert loaded.config == model.config
    for (name, ours), (other, theirs) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs), name
    ids = [id(p) for p in loaded.parameters()]
    assert len(ids) == len(list(model.parameters()))  # encoder and decoder still share


def test_equal_weights_give_equal_bytes(saved, build, tmp_path):
    save_model(build("pretrain"), tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_parts_of_a_pretrained_model(saved):
    model, path = saved
    captioner, retriever = load_model(path, "captioning").eval(), load_model(path, "retrieval")
    tokens = model.encode_image(IMAGES)
    expected = model.predict(model.decode(IDS, model.project_images(tokens)))
    kv = captioner.project_images(captioner.encode_image(IMAGES))
    assert torch.equal(captioner.predict(captioner.decode(IDS, kv)), expected)
    expected = model.match(IDS, torch.ones_like(IDS), model.project_images(tokens))
    kv = retriever.project_images(retriever.encode_image(IMAGES))
    assert torch.equal(retriever.eval().match(IDS, torch.ones_like(IDS), kv), expected)
    assert retriever.temperature.item() == model.temperature.item()


def test_vqa_begins_from_a_pretrained_model_and_ties_nothing(saved):
    model, path = saved
    loaded = load_model(path, "vqa")
    for name in ("text_encoder.embeddings.words.weight", "text_decoder.embeddings.words.weight"):
        assert torch.equal(loaded.get_parameter(name), model.get_parameter(name))
    with torch.no_grad():
        loaded.text_encoder.embeddings.words.weight.add_(1)
    shared = "text_decoder.embeddings.words.weight"
    assert torch.equal(loaded.get_parameter(shared), model.get_parameter(shared))


def test_the_decoder_of_vqa_reads_states_of_another_width(build, tmp_path):
    model = build("pretrain", vision={"width": 80, "num_heads": 4})
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, "vqa")
    width = loaded.config.text.width
    for layer in loaded.text_decoder.layers:
        assert layer.cross_attention.key_value.weight.shape == (2 * width, width)
        assert layer.cross_attention.key_value.weight.std().item() == pytest.approx(
            loaded.config.init_std, rel=0.1
        )


def test_nlvr_begins_with_two_streams_from_one(saved):
    model, path = saved
    loaded = load_model(path, "nlvr").eval()
    tokens = torch.cat([model.encode_image(IMAGES), model.encode_image(IMAGES.flip(3))], dim=1)
    assert loaded.project_images(tokens).key_values[0].shape == (
        1,
        34,
        2 * loaded.config.text.width,
    )
    for layer, before in zip(loaded.text_encoder.layers, model.text_encoder.layers, strict=True):
        first, second = layer.cross_attention.first, layer.cross_attention.second
        assert torch.equal(first.query.weight, before.cross_attention.query.weight)
        assert torch.equal(first.query.weight, second.query.weight)
        assert first.query.weight.data_ptr() != second.query.weight.data_ptr()
    # With one image twice, layers that take the mean say what the one stream said.
    mask = torch.ones_like(IDS)
    same = loaded.project_images(model.encode_image(IMAGES).repeat(1, 2, 1))
    expected = model.encode_pairs(IDS, mask, model.project_images(model.encode_image(IMAGES)))
    torch.testing.assert_close(loaded.encode_pairs(IDS, mask, same), expected, atol=1e-5, rtol=0)


def test_retrieval_begins_from_a_matching_model(build, tmp_path):
    save_model(build("matching"), tmp_path)
    assert load_model(tmp_path, "retrieval").temperature.item() == pytest.approx(0.07)


def test_another_image_size(saved):
    model, path = saved
    larger = load_model(path, image_size=96).eval()
    assert larger.image_size == 96
    assert larger.encode_image(torch.zeros(1, 3, 96, 96)).shape == (1, 37, 96)
    assert torch.equal(larger.vision.norm.weight, model.vision.norm.weight)


def test_loading_leaves_the_random_state_alone(saved):
    _, path = saved
    state = torch.get_rng_state()
    load_model(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_that_are_not_there(build, tmp_path):
    save_model(build("captioning"), tmp_path)
    with pytest.raises(CheckpointError, match="'captioning', not 'retrieval'"):
        load_model(tmp_path, "retrieval")


def test_a_wrong_tensor_is_named(saved):
    _, path = saved
    rewrite(path, lambda tensors: tensors.pop("match_head.bias"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*missing match_head\.bias"):
        load_model(path)
    rewrite(path, lambda tensors: tensors.update({"match_head.bias": torch.zeros(3)}))
    wrong = r"match_head\.bias of shape \(3,\), expected \(2,\)"
    with pytest.raises(CheckpointError, match=wrong):
        load_model(path)
    rewrite(path, lambda tensors: tensors.update({"match_head.bias": torch.zeros(2)}))
    load_model(path)
    rewrite(path, lambda tensors: tensors.update({"stray": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match="unexpected stray"):
        load_model(path, "captioning")


def test_damaged_files(saved):
    _, path = saved
    weights, config = path / "model.safetensors", path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        load_model(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_model(path)
    document = json.loads(config.read_text())
    for key, value in (("parts", "everything"), ("special", {"pad": 0}), ("image_size", 63)):
        config.write_text(json.dumps(document | {key: value}))
        with pytest.raises(CheckpointError, match=r"config\.json: does not describe a model"):
            load_model(path)
    del document["model"]
    config.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="does not describe a model"):
        load_model(path)
    config.write_text("[1")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_model(path)
    config.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(path)


def test_a_place_that_cannot_be_written(build, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BlipError, match="cannot be written"):
        save_model(build("captioning"), tmp_path / "file")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_momentum_beside_a_model(build, tmp_path):
    model = build("retrieval")
    save_model(model, tmp_path)
    assert load_momentum(tmp_path, model) is None
    momentum = new_momentum(model, queue_size=8)
    save_model(model, tmp_path, momentum)
    loaded = load_momentum(tmp_path, model)
    assert loaded is not None
    assert loaded.keys() == momentum.keys()
    assert all(torch.equal(loaded[name], momentum[name]) for name in loaded)
    larger = load_model(tmp_path, image_size=96)
    settings = load_config(PRESETS / "demo.yaml").finetune.retrieval.contrast
    settings = settings.model_copy(update={"queue_size": 8})
    contrast = MomentumContrast(larger, settings, by_image=True)
    contrast.load_state_dict(load_momentum(tmp_path, larger))
    assert contrast.twin.embed_image(torch.zeros(1, 3, 96, 96)).shape == (1, 64)
    del momentum["twin.vision.cls_token"]
    save_model(model, tmp_path, momentum)
    wrong = r"momentum\.safetensors: does not fit the model: missing twin\.vision\.cls_token$"
    with pytest.raises(CheckpointError, match=wrong):
        load_momentum(tmp_path, model)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_is_recognised_by_its_contents(build, vocabulary, tmp_path, kind):
    model = build("matching")
    written = tmp_path / "anything"
    assert write_checkpoint(Checkpoint(model, vocabulary), written, kind) == []
    sizes = model.config
    tells = kind != "salesforce"
    heads = NO_HEADS if tells else Heads(sizes.vision.num_heads, sizes.text.num_heads)
    read = read_checkpoint(written, None if tells else str(vocabulary), heads)
    assert read.model.parts == "matching"
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.model.state_dict()[name], tensor), name
    assert read.vocabulary.read_bytes() == vocabulary.read_bytes()
    assert read.vocabulary.parent == (written if tells else vocabulary.parent)
    with pytest.raises(ConfigError, match="anything: is there already"):
        write_checkpoint(read, written, kind)


def test_momentum_goes_from_kind_to_kind(build, vocabulary, tmp_path):
    model = build("retrieval")
    kept = Checkpoint(model, vocabulary, new_momentum(model, queue_size=8))
    write_checkpoint(kept, tmp_path / "ours", "blip")
    write_checkpoint(read_checkpoint(tmp_path / "ours"), tmp_path / "model.pth", "salesforce")
    heads = Heads(model.config.vision.num_heads, model.config.text.num_heads)
    read = read_checkpoint(tmp_path / "model.pth", str(vocabulary), heads)
    assert read.momentum is not None
    assert all(torch.equal(read.momentum[name], kept.momentum[name]) for name in kept.momentum)


def test_checkpoints_that_cannot_be_read(build, vocabulary, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        read_checkpoint(tmp_path)
    write_checkpoint(Checkpoint(build("features"), vocabulary), tmp_path / "ours", "blip")
    with pytest.raises(ConfigError, match="tells the numbers of attention heads"):
        read_checkpoint(tmp_path / "ours", heads=Heads(vision=2))
    with pytest.raises(ConfigError, match=r"vocabulary 'no/such/file\.txt'.* is no file here"):
        read_checkpoint(tmp_path / "ours", "no/such/file.txt")
    other = tmp_path / "vocab.txt"
    other.write_text(vocabulary.read_text() + "more\n")
    with pytest.raises(CheckpointError, match=r"has 402 token ids, but .* gives 403"):
        read_checkpoint(tmp_path / "ours", str(other))
