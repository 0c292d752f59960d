"""Properties of cleaning and tokens; the vocabulary's determinism."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.data.text import (
    Tokenizer,
    clean_caption,
    clean_question,
    has_words,
    train_vocabulary,
)
from blip.errors import ConfigError, DataError

CAPTIONS = [
    "a red square left of a blue ring",
    "two green bars on grey, one above the other",
    "there is a small striped pole in the picture",
    "img 2041 jpg buy now",
] * 3


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    train_vocabulary(CAPTIONS, 400, tmp_path)
    return Tokenizer(tmp_path / "vocab.txt")


def test_cleaning_keeps_what_its_rule_names() -> None:
    text = 'It\'s  "3.5 km": (yes/no)!\n'
    assert clean_caption(text, 30) == "it's 3 5 km yes/no"
    assert clean_question(text, 30) == "it's  35 km yes/no\n"
    assert clean_caption(text, 2) == "it's 3"


@given(st.text(max_size=80), st.integers(1, 12))
def test_cleaning_again_changes_nothing(text: str, max_words: int) -> None:
    once = clean_caption(text, max_words)
    assert len(once.split(" ")) <= max_words
    assert not set(once) & set('.!"()*#:;~')
    assert clean_caption(once, max_words) == clean_caption(once.lower(), max_words)


@given(st.text(alphabet="a .!()\t\n?", max_size=6))
def test_a_text_has_words_if_cleaning_leaves_some(text: str) -> None:
    assert has_words(text) == bool(clean_caption(text, 99).strip())
    assert has_words(text) == bool(clean_question(text, 99).strip())


def test_padding_to_the_longest(tokenizer: Tokenizer) -> None:
    texts = ["a red square", "", "a red square left of a blue ring"]
    ids, mask = tokenizer.encode(texts, 30)
    assert ids.shape == mask.shape
    assert ids.shape[1] == int(mask.sum(1).max())
    assert (ids[mask == 0] == tokenizer.special.pad).all()
    for row, length in zip(ids, mask.sum(1), strict=True):
        assert row[0] == tokenizer.special.cls
        assert row[length - 1] == tokenizer.special.sep
    cut, _ = tokenizer.encode(texts, 5)
    assert cut[2].tolist() == [*ids[2, :4].tolist(), tokenizer.special.sep]


def test_prompt_begins_with_dec(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer.encode(["a red "], 30)
    assert tokenizer.prompt("a red ") == [tokenizer.special.dec, *ids[0, 1:-1].tolist()]


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


def test_vocabulary_knows_frequent_words_and_round_trips(tokenizer: Tokenizer) -> None:
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
