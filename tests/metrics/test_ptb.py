import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from blip.metrics.ptb import DROPPED, tokenize


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog is sitting on the beach.", "a dog is sitting on the beach"),
        ("It's a couple who don't ride -- \"really\".", "it 's a couple who do n't ride really"),
        ("Cannot won't can't gonna gotta", "can not wo n't ca n't gon na got ta"),
        ("I'm you're we've he'll she'd", "i 'm you 're we 've he 'll she 'd"),
        ("a man & a woman (riding)", "a man & a woman -lrb- riding -rrb-"),
        ("AT&T a&b &amp; R&B", "at&t a & b & r&b"),
        ("Mr. Smith in the U.S. at 5 p.m.", "mr. smith in the u.s. at 5 p.m."),
        ("black/white well-known t-shirt", "black/white well-known t-shirt"),
        ("1,000 10.5 12:30 1-2 $5.00 50%", "1,000 10.5 12:30 1-2 $ 5.00 50 %"),
        ("o'clock rock 'n' roll ma'am", "o'clock rock 'n' roll ma'am"),
        ("hello... hello.. what?! no!!", "hello hello what ?! no !!"),
        ("it\u2019s \u201ccurly\u201d \u2014 see\u2026", "it 's curly see"),
        ("a café naïve", "a café naïve"),
        ("  \t two\nlines ", "two lines"),
        ("", ""),
        ("...", ""),
    ],
)
def test_tokens(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens


def test_tokens_of_tokens_are_the_same() -> None:
    text = tokenize("A white dog doesn't sit; the man's hat (red) is 10.5 cm, at 5 p.m.")
    assert tokenize(text.replace("-lrb-", "(").replace("-rrb-", ")")) == text


def test_golden_captions(shared: Path) -> None:
    golden = json.loads((shared / "golden/caption_metrics.json").read_text())["ptb"]
    for kind in ("gts", "res"):
        for key, captions in golden[f"raw_{kind}"].items():
            assert [tokenize(caption) for caption in captions] == golden[f"tok_{kind}"][key]


@pytest.mark.slow
def test_real_captions_as_the_java_tokenizer_has_them(shared: Path, tmp_path: Path) -> None:
    module = find_spec("pycocoevalcap")
    if shutil.which("java") is None or module is None or not module.submodule_search_locations:
        pytest.skip("needs Java and pycocoevalcap")
    lines = (shared / "data/flickr8k/captions.token.txt").read_text().splitlines()
    captions = [line.split("\t", 1)[1] for line in lines]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    jar = Path(module.submodule_search_locations[0]) / "tokenizer/stanford-corenlp-3.4.1.jar"
    command = ["java", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines"]
    tokens = subprocess.run(
        [*command, "-lowerCase", tmp_path / "captions.txt"], capture_output=True, check=True
    )
    expected = [
        " ".join(token for token in line.split() if token not in DROPPED)
        for line in tokens.stdout.decode().splitlines()
    ]
    wrong = sum(tokenize(c) != e for c, e in zip(captions, expected, strict=True))
    assert wrong / len(captions) <= 0.0005  # measured 1 of 10500
