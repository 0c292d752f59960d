import pickle
import re
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from blip import config
from blip.data.text import Tokenizer
from blip.errors import CheckpointError
from blip.models.blip import Blip
from blip.models.convert import HAS_MOMENTUM, new_momentum, to_official
from blip.models.momentum import NO_IMAGE
from blip.models.salesforce import (
    NO_HEADS,
    Checkpoint,
    Heads,
    read_salesforce,
    write_salesforce,
)

PARTS = ["pretrain", "captioning", "retrieval", "matching", "vqa", "nlvr", "features"]
GOLDEN = {  # a file of the reference's outputs, and the class whose state it holds
    "base_features": "features",
    "caption": "captioning",
    "itm_itc": "matching",
    "nlvr": "nlvr",
    "pretrain_1rank": "pretrain",
    "retrieval_train_1rank": "retrieval",
    "vqa": "vqa",
    "vqa_w64": "vqa",
}


@pytest.fixture
def heads(build) -> Heads:
    sizes = build("features").config
    return Heads(sizes.vision.num_heads, sizes.text.num_heads)


@pytest.fixture
def saved(build, tmp_path):
    """Write the state of a captioner, changed by a function, as the reference would."""

    def save(change=lambda state: None, parts="captioning") -> Path:
        state = {name: t.clone() for name, t in to_official(build(parts), None).items()}
        change(state)
        torch.save({"model": state, "epoch": 3}, tmp_path / "model.pth")
        return tmp_path / "model.pth"

    return save


def same(state, other) -> bool:
    return state.keys() == other.keys() and all(
        torch.equal(state[name], other[name]) and state[name].dtype == other[name].dtype
        for name in state
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_checkpoints_of_the_reference(shared: Path, tmp_path: Path, name: str) -> None:
    recorded = load_file(shared / "golden" / f"{name}.safetensors")
    state = {k.removeprefix("sd/"): t for k, t in recorded.items() if k.startswith("sd/")}
    torch.save({"model": state, "config": {"image_size": 64}}, tmp_path / "model.pth")
    vocabulary = shared / "golden" / "tiny_vocab.txt"
    checkpoint = read_salesforce(tmp_path / "model.pth", vocabulary, Heads(4, 4))
    assert checkpoint.model.parts == GOLDEN[name]
    assert (checkpoint.momentum is not None) == (GOLDEN[name] in HAS_MOMENTUM)
    assert write_salesforce(checkpoint, tmp_path / "again.pth") == []
    assert same(torch.load(tmp_path / "again.pth")["model"], state)


sizes = st.builds(
    config.Model,
    vision=st.builds(
        lambda heads, head, layers, patch: config.Vision(
            patch_size=patch,
            width=heads * head,
            num_layers=layers,
            num_heads=heads,
            drop_path=0,
            checkpoint_layers=0,
        ),
        *(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.sampled_from([2, 4])),
    ),
    text=st.builds(
        lambda heads, head, layers, intermediate, positions: config.Text(
            width=heads * head,
            num_layers=layers,
            num_heads=heads,
            intermediate=intermediate,
            max_positions=positions,
            dropout=0.1,
        ),
        *(st.integers(1, 3), st.integers(1, 5), st.integers(1, 8)),
        *(st.integers(1, 9), st.integers(1, 9)),
    ),
    embed_size=st.integers(1, 9),
    init_std=st.just(0.02),
    vision_weights=st.none(),
    text_weights=st.none(),
)


@given(sizes=sizes, parts=st.sampled_from(PARTS), side=st.integers(1, 4), momentum=st.booleans())
@settings(max_examples=15)
def test_any_model_comes_back_bit_by_bit(vocabulary, sizes, parts, side, momentum):
    text = Tokenizer(vocabulary)
    image_size = side * sizes.vision.patch_size
    model = Blip(sizes, image_size, text.vocab_size, text.special, parts)
    kept = new_momentum(model, 6) if momentum and parts in HAS_MOMENTUM else None
    heads = Heads(sizes.vision.num_heads, sizes.text.num_heads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        notes = write_salesforce(Checkpoint(model, vocabulary, kept), path)
        read = read_salesforce(path, vocabulary, heads)
        assert same(read.model.state_dict(), model.state_dict())
        stored = (
            sizes
            if hasattr(model, "image_projection")
            else sizes.model_copy(
                update={"embed_size": 256}  # nothing in the file tells
            )
        )
        assert read.model.config == stored
        assert read.model.image_size == image_size
        if kept is not None:
            assert same(read.momentum, kept)
        assert bool(notes) == (parts in HAS_MOMENTUM and kept is None)
        ids = [id(p) for p in read.model.parameters()]
        assert len(ids) == len(list(model.parameters()))  # what is shared is still shared


def test_a_bare_state_dict_in_half_precision_and_without_what_can_be_derived(
    build, tmp_path, vocabulary, heads
):
    model = build("captioning")
    state = to_official(model, None)
    for name in [n for n in state if "position_ids" in n or ".predictions.decoder." in n]:
        del state[name]
    torch.save({name: t.half() for name, t in state.items()}, tmp_path / "half.bin")
    read = read_salesforce(tmp_path / "half.bin", vocabulary, heads).model.state_dict()
    halved = {name: t.half().float() for name, t in model.state_dict().items()}
    assert same(read, halved)


def test_the_reference_s_old_file_format(build, tmp_path, vocabulary, heads):
    model = build("features")
    path = tmp_path / "old.pth"
    torch.save(to_official(model, None), path, _use_new_zipfile_serialization=False)
    assert same(read_salesforce(path, vocabulary, heads).model.state_dict(), model.state_dict())


def test_reading_leaves_the_random_state_alone(saved, vocabulary, heads):
    path = saved()
    state = torch.get_rng_state()
    read_salesforce(path, vocabulary, heads)
    assert torch.equal(torch.get_rng_state(), state)


BIAS = "text_decoder.cls.predictions.bias"
POSITIONS = "text_decoder.bert.embeddings.position_ids"
FAULTS = {
    "missing": (lambda s: s.pop(BIAS), rf"model\.pth: missing {BIAS}$"),
    "unexpected": (lambda s: s.update(stray=torch.zeros(1)), "unexpected stray"),
    "another class": (lambda s: s.update(temp=torch.zeros(())), "unexpected temp"),
    "misshapen": (
        lambda s: s.update({BIAS: torch.zeros(7)}),
        rf"{BIAS} of shape \(7,\), expected \(402,\)",
    ),
    "integers": (
        lambda s: s.update({BIAS: s[BIAS].long()}),
        rf"{BIAS} of torch.int64, expected torch.float32",
    ),
    "untied": (
        lambda s: s["text_decoder.cls.predictions.decoder.weight"].add_(1),
        "shared or fixed",
    ),
    "other positions": (lambda s: s[POSITIONS].add_(1), rf"{POSITIONS} is not what"),
    "no vision": (
        lambda s: s.pop("visual_encoder.pos_embed"),
        "is no BLIP: missing visual_encoder",
    ),
    "not square": (
        lambda s: s.update({"visual_encoder.pos_embed": torch.zeros(1, 16, 96)}),
        "is of 15 patches, not a square",
    ),
    "axes": (
        lambda s: s.update({"visual_encoder.pos_embed": torch.zeros(16, 96)}),
        r"of shape \(16, 96\), expected 3 axes",
    ),
    "no tensor": (lambda s: s.update(epoch=3), r"'epoch' is int"),
    "empty": (lambda s: s.clear(), "must hold a state dict"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(saved, vocabulary, heads, fault):
    change, message = FAULTS[fault]
    with pytest.raises(CheckpointError, match=message):
        read_salesforce(saved(change), vocabulary, heads)


def test_shared_weights_that_differ(saved, vocabulary, heads):
    shared = "text_decoder.bert.encoder.layer.0.output.dense.weight"
    path = saved(lambda state: state[shared].add_(1), "pretrain")
    with pytest.raises(CheckpointError, match=rf"{shared} is not what .*: in BLIP it is shared"):
        read_salesforce(path, vocabulary, heads)


def test_what_is_missing_of_a_momentum_begins_anew(build, tmp_path, vocabulary, heads):
    model = build("retrieval")
    momentum = new_momentum(model, 8)
    momentum = {name: t + 1 for name, t in momentum.items()}
    state = to_official(model, momentum)
    for name in (
        "idx_queue",
        "visual_encoder_m.cls_token",
        "text_encoder_m.embeddings.position_ids",
    ):
        del state[name]
    torch.save(state, tmp_path / "model.pth")
    read = read_salesforce(tmp_path / "model.pth", vocabulary, heads)
    anew = {
        "queue.image_ids": torch.full((8,), NO_IMAGE),
        "twin.vision.cls_token": model.vision.cls_token.detach(),
    }
    assert same(read.momentum, momentum | anew)
    (note,) = read.notes
    assert "2 tensors are missing, idx_queue first" in note


def test_a_momentum_of_another_model(build, tmp_path, vocabulary, heads):
    state = to_official(build("retrieval"), new_momentum(build("retrieval"), 8))
    state["vision_proj_m.bias"] = torch.zeros(3)
    state["text_encoder_m.stray"] = torch.zeros(3)
    torch.save(state, tmp_path / "model.pth")
    wrong = r"unexpected text_encoder_m\.stray; vision_proj_m\.bias of shape \(3,\)"
    with pytest.raises(CheckpointError, match=wrong):
        read_salesforce(tmp_path / "model.pth", vocabulary, heads)


def test_the_numbers_of_heads_are_asked_for(saved, vocabulary):
    with pytest.raises(CheckpointError, match="vision width 96: give --vision-heads"):
        read_salesforce(saved(), vocabulary, NO_HEADS)
    with pytest.raises(CheckpointError, match="not a multiple of num_heads 5"):
        read_salesforce(saved(), vocabulary, Heads(5, 2))


def test_a_vocabulary_that_does_not_fit(saved, vocabulary, heads, tmp_path):
    short = tmp_path / "vocab.txt"
    short.write_text("".join(vocabulary.read_text().splitlines(keepends=True)[:-1]))
    wrong = r"has 402 token ids, but .*vocab\.txt gives 401"
    with pytest.raises(CheckpointError, match=wrong):
        read_salesforce(saved(), short, heads)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_files_that_are_no_checkpoints(saved, vocabulary, heads, tmp_path):
    whole = saved().read_bytes()
    path = tmp_path / "bad.pth"

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))}: {message}"):
            read_salesforce(path, vocabulary, heads)

    refused("cannot be read: No such file")
    for content in (whole[: len(whole) // 2], whole[:-10], b"", b"no checkpoint", b"\x80\x02"):
        path.write_bytes(content)
        refused("is damaged, or holds more than plain data")
    target = tmp_path / "was run"
    torch.save({"model": {"a": Malicious(target)}}, path)
    refused("is damaged, or holds more than plain data, which is not run")
    path.write_bytes(pickle.dumps(Malicious(target), protocol=2))
    refused("is damaged, or holds more than plain data, which is not run")
    assert not target.exists()
    torch.save([1, 2], path)
    refused("must hold a state dict, got list")
