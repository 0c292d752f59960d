import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.metrics import ptb
from blip.metrics.ptb import tokenize
from tests.metrics.noisy_text import PIECES, noisy_lines


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog is sitting on the beach.", "a dog is sitting on the beach"),
        ("It's a couple who don't ride -- \"really\".", "it 's a couple who do n't ride really"),
        ("Cannot won't can't gonna gotta 'twas", "can not wo n't ca n't gon na got ta 't was"),
        ("I'm you're we've he'll she'd", "i 'm you 're we 've he 'll she 'd"),
        ("a man & a woman (riding)", "a man & a woman -lrb- riding -rrb-"),
        ("AT&T a&b &amp; R&B &lt;3", "at&t a & b & r&b < 3"),
        ("Mr. Smith in the U.S. at 5 p.m.", "mr. smith in the u.s. at 5 p.m."),
        ("jars, jugs, etc. The end etc.", "jars jugs etc. the end etc."),
        ("black/white well-known t-shirt", "black/white well-known t-shirt"),
        ("1,000 10.5 12:30 1-2 $5.00 50%", "1,000 10.5 12:30 1-2 $ 5.00 50 %"),
        ("o'clock rock 'n' roll ma'am", "o'clock rock 'n' roll ma'am"),
        ("hello... hello.. what?! no!!", "hello hello what ?! no !!"),
        ("no.space after!stops", "no.space after!stops"),
        ("it\u2019s \u201ccurly\u201d \u2014 see\u2026", "it 's curly see"),
        ("a café naïve \u65e5\u672c", "a café naïve \u65e5\u672c"),
        ("5 1/2 inches, \u00bd cup", "5\u00a01/2 inches 1/2 cup"),
        ("call (415) 555-1234 now", "call -lrb-415-rrb-\u00a0555-1234 now"),
        ("see www.example.com/all or a@b.org", "see www.example.com/all or a@b.org"),
        ("smile :-) ^_^ #fun @home", "smile :--rrb- ^_^ #fun @home"),
        ("\u20ac5 \u00a35 10\u00a2", "$ 5 # 5 10 cents"),
        ("<b>bold</b> <br />", "<b> bold </b> <br\u00a0/>"),
        ("long ----- short --- dash", "long ----- short dash"),
        ("an emoji \U0001f600 goes", "an emoji goes"),
        ("http://x\U0001f600", "http://x\U0001f600"),
        ("  \t two\nlines \r here ", "two lines here"),
        ("an open <a b='tag", "an open < a b = tag"),
        ("", ""),
        ("...", ""),
    ],
)
def test_tokens(caption: str, tokens: str) -> None:
    assert tokenize([caption]) == [tokens]
    assert tokenize([caption, "next"]) == [tokens, "next"]


def test_the_next_caption_tells_what_an_initial_is() -> None:
    assert tokenize(["vitamin C.", "A dog"]) == ["vitamin c", "a dog"]
    assert tokenize(["vitamin C.", "a dog"]) == ["vitamin c.", "a dog"]


def test_no_caption_has_no_tokens() -> None:
    assert tokenize([]) == []


ENDS = st.sampled_from(["", "", " ", "  ", "\t", " \t", "\n", "\r", "\u00a0"])
LINES = st.tuples(st.lists(st.sampled_from(PIECES)).map(" ".join) | st.text(), ENDS).map("".join)


@given(st.lists(LINES, max_size=6))
def test_word_by_word_is_as_the_whole_text(captions: list[str]) -> None:
    lines = [ptb._units(caption.replace("\n", " ")) for caption in captions]
    text, at, plain = "\n".join(lines), 0, []
    for line in lines:
        plain.append(ptb._slowly(text, at, at + len(line)))
        at += len(line) + 1
    assert tokenize(captions) == plain


def test_golden_captions(shared: Path) -> None:
    golden = json.loads((shared / "golden/caption_metrics.json").read_text())["ptb"]
    for kind in ("gts", "res"):
        for key, captions in golden[f"raw_{kind}"].items():
            assert tokenize(captions) == golden[f"tok_{kind}"][key]


def assert_as_java(captions: list[str], official: Path, folder: Path) -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    captions = [" ".join(caption.splitlines()) for caption in captions]
    (folder / "captions.txt").write_text("\n".join(captions), encoding="utf-8")
    jar = official / "tokenizer/stanford-corenlp-3.4.1.jar"
    command = ["java", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines"]
    done = subprocess.run(
        [*command, "-lowerCase", folder / "captions.txt"], capture_output=True, check=True
    )
    expected = [
        " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATIONS)
        for line in done.stdout.decode().split("\n")
    ]
    differing = [
        pair
        for pair in zip(captions, tokenize(captions), expected, strict=True)
        if pair[1] != pair[2]
    ]
    assert differing == []


@pytest.mark.slow
def test_real_captions_as_the_java_tokenizer_has_them(
    shared: Path, official: Path, tmp_path: Path
) -> None:
    """Captions, web texts and their addresses: none of 111,094 differed."""
    data = shared / "data"
    captions: list[str] = []
    for path in sorted(data.glob("caption_metrics/re*/*.json")):
        for row in json.loads(path.read_text()):
            own = row["caption"]
            captions += own if isinstance(own, list) else [own]
    for path in sorted(data.glob("coco_karpathy/*_gt.json")):
        captions += [row["caption"] for row in json.loads(path.read_text())["annotations"]]
    for path in [*data.glob("flickr8k/captions.token.txt"), *data.glob("web_pairs/*.tsv")]:
        captions += [text for line in path.read_text().split("\n") for text in line.split("\t")]
    for path in data.glob("web_pairs/*.parquet"):
        captions += [text or "" for text in pq.read_table(path)["TEXT"].to_pylist()]
    assert len(captions) > 50_000
    assert_as_java(captions, official, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_noisy_lines_as_the_java_tokenizer_has_them(
    seed: int, official: Path, tmp_path: Path
) -> None:
    """Seeds 0 to 19, 400,000 lines, had no difference."""
    assert_as_java(noisy_lines(seed, 20_000), official, tmp_path)
