import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip.errors import CheckpointError, DataError
from blip.models.convert import new_momentum, to_official
from blip.models.huggingface import (
    huggingface_name,
    official_name,
    read_huggingface,
    write_huggingface,
)
from blip.models.salesforce import NO_HEADS, Checkpoint, Heads

CLASSES = {
    "captioning": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "matching": "BlipForImageTextRetrieval",
}


@pytest.fixture
def model_of(build):
    """Build a model whose images and texts are of one width, as transformers wants for VQA."""
    width = build("features").config.text.width
    return lambda parts: build(parts, vision={"width": width}, text={"dropout": 0.1})


@pytest.fixture
def folder(model_of, vocabulary, tmp_path):
    model = model_of("captioning")
    write_huggingface(Checkpoint(model, vocabulary), tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, section, **values):
    document = json.loads((folder / "config.json").read_text())
    document[section].update(values)
    (folder / "config.json").write_text(json.dumps(document))


def same(state, other) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[n], other[n]) for n in state)


@pytest.mark.parametrize("parts", CLASSES)
def test_there_and_back_is_the_same(model_of, vocabulary, tmp_path, parts):
    model = model_of(parts)
    assert write_huggingface(Checkpoint(model, vocabulary), tmp_path / "model") == []
    read = read_huggingface(tmp_path / "model", vocabulary, NO_HEADS)
    assert read.model.parts == parts
    assert same(read.model.state_dict(), model.state_dict())
    assert read.model.config.vision.num_heads == model.config.vision.num_heads
    assert read.model.config.text == model.config.text
    assert read.model.image_size == model.image_size
    assert read.notes == []
    assert (tmp_path / "model" / "vocab.txt").read_bytes() == vocabulary.read_bytes()


@pytest.mark.parametrize("parts", ["captioning", "matching"])
def test_images_and_texts_of_two_widths(build, vocabulary, tmp_path, parts):
    model = build(parts)
    assert model.config.vision.width != 2 * model.config.text.width
    model = build(parts, vision={"width": 2 * model.config.text.width})
    write_huggingface(Checkpoint(model, vocabulary), tmp_path / "model")
    read = read_huggingface(tmp_path / "model", vocabulary, NO_HEADS)
    assert same(read.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("parts", CLASSES)
def test_transformers_loads_it_whole(model_of, vocabulary, tmp_path, parts):
    import transformers

    model = model_of(parts)
    write_huggingface(Checkpoint(model, vocabulary), tmp_path)
    architecture = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert architecture == [CLASSES[parts]]
    theirs, report = getattr(transformers, CLASSES[parts]).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    # What transformers writes, with shards, is read again.
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    read = read_huggingface(tmp_path / "theirs", vocabulary, NO_HEADS)
    assert same(read.model.state_dict(), model.state_dict())
    assert read.notes == []


def test_the_processor_reads_texts_and_images_as_ours(model_of, vocabulary, tmp_path):
    import transformers

    from blip.data.text import Tokenizer

    model = model_of("captioning")
    write_huggingface(Checkpoint(model, vocabulary), tmp_path)
    processor = transformers.BlipProcessor.from_pretrained(tmp_path)
    ids, mask = Tokenizer(vocabulary).encode(["word1 Word20 nothing", "word7"], 30)
    theirs = processor.tokenizer(["word1 Word20 nothing", "word7"], padding=True)
    assert theirs["input_ids"] == ids.tolist()
    assert theirs["attention_mask"] == mask.tolist()
    tokens = processor.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"])
    assert tokens == [model.special.dec, model.special.enc]
    assert processor.tokenizer.decode([400, 6, 3], skip_special_tokens=True) == "word1"
    assert processor.image_processor.size == {"height": 64, "width": 64}


def test_names_there_and_back(build):
    for name in to_official(build("captioning"), None):
        assert official_name(huggingface_name(name)) == name
    assert huggingface_name("visual_encoder.blocks.3.norm1.bias") == (
        "vision_model.encoder.layers.3.layer_norm1.bias"
    )


def test_what_is_left_out_is_told(build, vocabulary, tmp_path):
    model = build("retrieval")
    kept = Checkpoint(model, vocabulary, new_momentum(model, 4))
    notes = write_huggingface(kept, tmp_path / "model")
    assert [note.split(":")[0] for note in notes] == ["temperature", "momentum copies and queue"]
    read = read_huggingface(tmp_path / "model", vocabulary, NO_HEADS)
    assert read.model.parts == "matching"


@pytest.mark.parametrize("parts", ["pretrain", "nlvr", "features"])
def test_no_class_for_it(build, vocabulary, tmp_path, parts):
    with pytest.raises(CheckpointError, match=f"has no class for the parts '{parts}'"):
        write_huggingface(Checkpoint(build(parts), vocabulary), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_vqa_with_a_wide_image_encoder(build, vocabulary, tmp_path):
    model = build("vqa", vision={"width": 128})
    with pytest.raises(CheckpointError, match="width of images, 128, and text"):
        write_huggingface(Checkpoint(model, vocabulary), tmp_path / "model")


def test_an_old_file_of_pytorch_with_what_newer_ones_leave_out(model_of, folder, vocabulary):
    model = model_of("captioning")
    state = {huggingface_name(n): t.clone() for n, t in to_official(model, None).items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    read = read_huggingface(folder, vocabulary, NO_HEADS)
    assert same(read.model.state_dict(), model.state_dict())
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors, "):
        read_huggingface(folder, vocabulary, NO_HEADS)


def test_another_epsilon_is_told_and_not_computed_with(folder, vocabulary):
    change_config(folder, "vision_config", layer_norm_eps=1e-5)
    (note,) = read_huggingface(folder, vocabulary, NO_HEADS).notes
    assert note.startswith("vision_config.layer_norm_eps: 1e-05 in")


def test_heads_of_the_configuration_and_of_the_caller(folder, vocabulary):
    change_config(folder, "text_config", num_attention_heads=1)
    assert read_huggingface(folder, vocabulary, NO_HEADS).model.config.text.num_heads == 1
    read = read_huggingface(folder, vocabulary, Heads(text=2)).model
    assert read.config.text.num_heads == 2


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("text_config", {"hidden_act": "relu"}, "text_config.hidden_act is 'relu': BLIP has gelu"),
        ("vision_config", {"num_attention_heads": 0}, "num_attention_heads is 0, no number > 0"),
        ("vision_config", {"num_attention_heads": "a"}, "num_attention_heads is 'a'"),
        ("text_config", {"num_attention_heads": 7}, "not a multiple of num_heads 7"),
    ],
)
def test_settings_that_are_not_blips(folder, vocabulary, section, values, message):
    change_config(folder, section, **values)
    with pytest.raises(CheckpointError, match=message):
        read_huggingface(folder, vocabulary, NO_HEADS)


def test_faults_are_named_as_transformers_names_them(folder, vocabulary):
    path = folder / "model.safetensors"
    whole = load_file(path)
    key = "vision_model.encoder.layers.0.self_attn.qkv.bias"
    tensors = {**whole, "stray": torch.zeros(1)}
    tensors[key] = torch.zeros(5)
    del tensors["vision_model.post_layernorm.bias"]
    save_file(tensors, path)
    wrong = rf"missing vision_model\.post_layernorm\.bias; unexpected stray; {key} of shape \(5,\)"
    with pytest.raises(CheckpointError, match=wrong):
        read_huggingface(folder, vocabulary, NO_HEADS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        read_huggingface(folder, vocabulary, NO_HEADS)


def test_shards_that_are_not_right(folder, vocabulary):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    index = folder / "model.safetensors.index.json"

    def refused(content: object, message: str) -> None:
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            read_huggingface(folder, vocabulary, NO_HEADS)

    places = dict.fromkeys(tensors, "shard.safetensors")
    refused([], "is no index of shards")
    refused({"weight_map": 3}, "is no index of shards")
    refused({"weight_map": {**places, "a": 3}}, "is no index of shards")
    refused({"weight_map": {"a": 3}}, "names 3, which is not a file beside it")
    refused({"weight_map": {**places, "a": "../other.safetensors"}}, "not a file beside it")
    refused({"weight_map": {**places, "a": "shard.safetensors"}}, "its shards disagree about a")
    refused({"weight_map": {**places, "a": "gone.safetensors"}}, r"gone\.safetensors: cannot be")
    index.write_text(json.dumps({"weight_map": places}))
    read_huggingface(folder, vocabulary, NO_HEADS)


def test_no_configuration(folder, vocabulary):
    (folder / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(CheckpointError, match="vision_config is missing"):
        read_huggingface(folder, vocabulary, NO_HEADS)
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_huggingface(folder, vocabulary, NO_HEADS)
