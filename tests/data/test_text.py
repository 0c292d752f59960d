"""Text cleaning and tokens against the reference outputs; the vocabulary's determinism."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.data.text import Tokenizer, clean_caption, clean_question, train_vocabulary
from blip.errors import ConfigError, DataError

CAPTIONS = [
    "a red square left of a blue ring",
    "two green bars on grey, one above the other",
    "there is a small striped pole in the picture",
    "img 2041 jpg buy now",
] * 3


@pytest.fixture(params=["full", "tiny"])
def reference(request: pytest.FixtureRequest, shared: Path) -> tuple[Tokenizer, dict]:
    vocabularies = {"full": "vocab/bert-base-uncased.txt", "tiny": "golden/tiny_vocab.txt"}
    expected = json.loads((shared / "golden/tokenizer.json").read_text())[request.param]
    return Tokenizer(shared / vocabularies[request.param]), expected


def test_cleaning_equals_the_reference(shared: Path) -> None:
    golden = json.loads((shared / "golden/text_cleaning.json").read_text())
    for case in golden["pre_caption"]:
        assert clean_caption(case["in"], case["max_words"]) == case["out"]
    for case in golden["pre_question"]:
        assert clean_question(case["in"], case["max_words"]) == case["out"]


@given(st.text(max_size=80), st.integers(1, 12))
def test_cleaning_again_changes_nothing(text: str, max_words: int) -> None:
    once = clean_caption(text, max_words)
    assert len(once.split(" ")) <= max_words
    assert not set(once) & set('.!"()*#:;~')
    assert clean_caption(once, max_words) == clean_caption(once.lower(), max_words)


def test_ids_equal_the_reference(reference: tuple[Tokenizer, dict]) -> None:
    tokenizer, expected = reference
    special = tokenizer.special
    assert tokenizer.vocab_size == expected["vocab_size_total"]
    assert special.pad == expected["pad"]
    assert (special.cls, special.sep) == (expected["cls"], expected["sep"])
    assert (special.dec, special.enc) == (expected["dec_bos"], expected["enc"])
    for case in expected["cases"]:
        assert tokenizer.encode([case["text"]], 512)[0][0].tolist() == case["ids"], case["text"]
        assert tokenizer.encode([case["text"]], 10)[0][0].tolist() == case["ids_max10"], case[
            "text"
        ]
        assert tokenizer.decode(case["ids"]) == case["decoded_skip_special"]


def test_padding_to_the_longest(reference: tuple[Tokenizer, dict]) -> None:
    tokenizer, _ = reference
    ids, mask = tokenizer.encode(["a dog", "", "a dog on the beach"], 30)
    assert ids.shape == mask.shape
    assert ids.shape[1] == int(mask.sum(1).max())
    assert (ids[mask == 0] == tokenizer.special.pad).all()
    for row, length in zip(ids, mask.sum(1), strict=True):
        assert row[0] == tokenizer.special.cls
        assert row[length - 1] == tokenizer.special.sep


def test_prompt_begins_with_dec(shared: Path) -> None:
    tokenizer = Tokenizer(shared / "vocab/bert-base-uncased.txt")
    assert tokenizer.prompt("a picture of ") == [30522, 1037, 3861, 1997]


def test_vocabulary_is_the_same_in_every_process_and_order(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from blip.data.text import train_vocabulary;"
        "train_vocabulary(sys.stdin.read().splitlines(), 120, pathlib.Path(sys.argv[1]))"
    )
    written = []
    for seed in ("0", "1"):
        texts = CAPTIONS.copy()
        random.Random(seed).shuffle(texts)
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            input="\n".join(texts),
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        written.append((folder / "vocab.txt").read_bytes())
    assert written[0] == written[1]


def test_vocabulary_knows_frequent_words_and_round_trips(tmp_path: Path) -> None:
    train_vocabulary(CAPTIONS, 400, tmp_path)
    tokenizer = Tokenizer(tmp_path / "vocab.txt")
    ids, _ = tokenizer.encode(["a red square"], 30)
    assert ids.shape[1] == 2 + 3  # whole words
    for caption in CAPTIONS:
        assert tokenizer.decode(tokenizer.encode([caption], 60)[0][0].tolist()) == caption


def test_vocabulary_keeps_its_size(tmp_path: Path) -> None:
    train_vocabulary(CAPTIONS, 60, tmp_path)
    lines = (tmp_path / "vocab.txt").read_text().split()
    assert len(lines) == 60
    assert len(set(lines)) == 60


def test_bad_vocabularies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no words"):
        train_vocabulary(["", " "], 100, tmp_path)
    with pytest.raises(ConfigError, match="no room"):
        train_vocabulary(["a"], 5, tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        Tokenizer(tmp_path / "absent.txt")
    (tmp_path / "vocab.txt").write_text("[PAD]\na\n")
    with pytest.raises(DataError, match=r"\[UNK\], \[CLS\], \[SEP\] missing"):
        Tokenizer(tmp_path / "vocab.txt")
