"""Token ids, pieces and text of ids against the reference's, for the full and the tiny vocabulary."""

import json
import re

import pytest

from blip.data.text import Tokenizer

FILES = {"full": "vocab/bert-base-uncased.txt", "tiny": "golden/tiny_vocab.txt"}


@pytest.fixture(params=FILES)
def reference(request, shared):
    expected = json.loads((shared / "golden" / "tokenizer.json").read_text())[request.param]
    vocabulary = shared / FILES[request.param]
    pieces = [*vocabulary.read_text(encoding="utf-8").splitlines(), "[DEC]", "[ENC]"]
    return Tokenizer(vocabulary), expected, pieces


def test_special_tokens(reference):
    tokenizer, expected, _ = reference
    assert tokenizer.vocab_size == expected["vocab_size_total"]
    special = tokenizer.special
    names = ("pad", "cls", "sep", "dec_bos", "enc")
    assert tuple(special) == tuple(expected[name] for name in names)
    ids, _ = tokenizer.encode(["[MASK] \N{GRINNING FACE}"], 10)
    assert ids[0].tolist() == [special.cls, expected["mask"], expected["unk"], special.sep]
    assert len(tokenizer.prompt("a picture of ")) == expected["prompt_length_a_picture_of"]


def test_ids_and_pieces(reference):
    tokenizer, expected, pieces = reference
    for case in expected["cases"]:
        ids, mask = tokenizer.encode([case["text"]], 512)
        assert ids[0].tolist() == case["ids"], case
        assert mask.all()
        assert [pieces[i] for i in ids[0, 1:-1]] == case["tokens"], case
        prompt = [tokenizer.special.dec, *case["ids"][1:-1]]
        assert tokenizer.prompt(case["text"]) == prompt, case


def test_truncation_and_padding(reference):
    tokenizer, expected, _ = reference
    for case in expected["cases"]:
        limits = {name: int(found[0]) for name in case if (found := re.findall(r"\d+$", name))}
        assert limits
        for name, limit in limits.items():
            beside = ["a " * limit] if name.startswith("ids_pad") else []
            ids, mask = tokenizer.encode([case["text"], *beside], limit)
            assert ids[0].tolist() == case[name], case
            assert mask[0].sum() == min(len(case["ids"]), limit)


def test_text_of_ids(reference):
    tokenizer, expected, _ = reference
    for case in expected["cases"]:
        assert tokenizer.decode(case["ids"]) == case["decoded_skip_special"], case


@pytest.mark.parametrize(
    ("name", "texts", "ids"),
    [
        ("base_features", "captions", "in/input_ids"),
        ("itm_itc", "captions", "in/input_ids"),
        ("caption", "captions", "in/input_ids"),
        ("pretrain_1rank", "captions", "in/input_ids"),
        ("retrieval_train_1rank", "captions", "in/input_ids"),
        ("retrieval_eval", "texts", "in/input_ids"),
        ("video_retrieval_eval", "texts", "in/input_ids"),
        ("vqa", "questions", "in/question_ids"),
        ("vqa", "answers", "in/answer_ids"),
        ("vqa", "candidates", "in/candidate_ids"),
        ("nlvr", "sentences", "in/input_ids"),
    ],
)
def test_texts_of_the_models_inputs(golden, shared, name, texts, ids):
    """The words behind the recorded inputs give their ids (position 0 says who reads them)."""
    reference = golden(name)
    recorded = reference[ids]
    found, mask = Tokenizer(shared / FILES["tiny"]).encode(reference.meta[texts], 512)
    length = found.shape[1]
    assert found[:, 1:].tolist() == recorded[:, 1:length].tolist()
    recorded_mask = reference[ids.replace("input_ids", "attention_mask").replace("_ids", "_mask")]
    assert mask.tolist() == recorded_mask[:, :length].tolist()
    assert not recorded_mask[:, length:].any()
