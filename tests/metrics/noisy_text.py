"""Lines of text as nobody would write them: pieces that a tokenizer knows, joined by chance."""

import random
import re
from pathlib import Path

_TEXT = Path(__file__).with_name("pieces.txt").read_text(encoding="utf-8")
PIECES = re.sub(r"\\u(....)", lambda code: chr(int(code[1], 16)), _TEXT).split()
PIECES += ["\u00a0", "\u3000", "\u2009", "\u0085"]
JOINTS = [" "] * 14 + [""] * 11 + list("\t\u00a0.-'\"/_!?:&@") + ["  ", ". ", ", ", " . "]
WORDS = [
    "a",
    "man",
    "dog",
    "on",
    "the",
    "street",
    "riding",
    "two",
    "an",
    "U",
    "S",
    "Mr",
    "etc",
    "co",
]
SIGNS = "abcdefnotrsNTSXacIi '\"`.,;:!?-_/\\()[]{}<>&@#$%*+=|~^0123456789"
SIGNS += "\t\u00a0\u2019\u2018\u201c\u00ad\u00e9\u00bd\u20ac\u2026\u2013"


def noisy_lines(seed: int, count: int) -> list[str]:
    """Give lines without a line break or a tag that is not closed."""
    chance = random.Random(seed)
    lines = (_line(chance) for _ in range(count))
    unbroken = (
        re.sub("[\n\r\x0b\x0c\u2028\u2029\ud800-\udfff\u03a3]", " ", line) for line in lines
    )
    # Quotes in tags, and what `x.[^x=` begins, go on over line ends; see `tokenize`.
    return [re.sub(r"<(?=[^>]*['\"])|\[(?=\^)", "(", line) for line in unbroken]


def _line(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.5:
        return "".join(
            chance.choice(PIECES if chance.random() < 0.7 else WORDS) + chance.choice(JOINTS)
            for _ in range(chance.randint(1, 10))
        )
    if kind < 0.7:
        return "".join(chance.choices(SIGNS, k=chance.randint(0, 25)))
    if kind < 0.8:
        text = "".join(chance.choices(PIECES, k=chance.randint(1, 4)))
        at = chance.randrange(len(text) + 1)
        return text[:at] + chance.choice(SIGNS) + text[at:]
    if kind < 0.9:
        any_character = [chr(chance.randrange(0x10000)) for _ in range(8)]
        return "".join(chance.choices([*SIGNS, *any_character * 4], k=chance.randint(1, 20)))
    words = [chance.choice(WORDS if chance.random() < 0.8 else PIECES) for _ in range(10)]
    return " ".join(words) + chance.choice(["", ".", " .", ". ", "!", " "])
