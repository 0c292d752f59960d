"""Penn Treebank tokens of captions, as the caption metrics count them, without Java.

The published scores tokenise with Stanford's PTBTokenizer 3.4.1, a caption a line, lower-case, and
drop punctuation tokens (pycocoevalcap). So does this, by the same rules (`blip.metrics.ptb_rules`).
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import accumulate

from blip.metrics.lexing import Lexer, Rule
from blip.metrics.ptb_rules import NAMES, TOKENS, TWINS, TWO_IN_ONE, Kind, Token, classes

_LONG = ("---", "----")  # become a dash for the official tool; longer rows stay as they are
DROPPED = frozenset(
    ("", "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", *_LONG)
)

_UNSETTLED = "\r"  # which no settled token has
_UNKNOWN = Token("", kind="skip")
_SIGNS = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    **{"\u00a2": "cents", "\u00a3": "#"},
    **dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$"),
}
_QUOTES = str.maketrans(
    {
        **dict.fromkeys("\u0091\u2018\u201b\u2039", "`"),
        **dict.fromkeys("\u0092\u2019\u203a", "'"),
        **dict.fromkeys("\u0093\u201c\u00ab", "``"),
        '"': "''",
        **dict.fromkeys("\u0094\u201d\u00bb", "''"),
    }
)
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\u00a0"})
_BEYOND = re.compile("[\U00010000-\U0010ffff]")
_ENTITY = re.compile("&amp;|&lt;|&gt;", re.IGNORECASE)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}


def tokenize(captions: Sequence[str]) -> list[str]:
    """Give each caption's tokens, lower-case, without punctuation, separated by single spaces.

    The captions are one text, a line each, as for the official tool: what the last dot of one means
    may depend on how the next begins. (A line break in a caption counts as a space. At one that is
    not a newline the official tool begins a caption, and gives all behind it to the wrong images.)
    """
    lines = [_units(caption.replace("\n", " ")) for caption in captions]
    text = "\n".join(lines)
    starts = accumulate((len(line) + 1 for line in lines), initial=0)
    found = [*_quickly(text)[:-1], _UNSETTLED]  # the last line has no end
    return [
        _slowly(text, start, start + len(line)) if _UNSETTLED in tokens else tokens[1:]
        for line, tokens, start in zip(lines, found, starts, strict=False)
    ]


def _quickly(text: str) -> list[str]:
    """Give the tokens of every line, each behind a space, as far as they are known word by word.

    The last word of a line keeps the end of the line, and a space before that, as a tab.
    """
    words = text.replace(" \n", "\t\n").replace("\n", "\n ").split(" ")
    return "".join(map(_known, words)).split("\n")


@lru_cache(maxsize=1 << 17)
def _known(word: str) -> str:
    bare = word.removesuffix("\n").removesuffix("\t")
    return _settled(bare, word[len(bare) :] or " ") + "\n" * word.endswith("\n")


def _settled(word: str, behind: str) -> str:
    """Give the tokens of a word, if nothing but the space or line end behind it has a say."""
    if word.isascii() and word.isalpha() and word.lower() not in TWO_IN_ONE:
        return f" {word.lower()}"  # most are such, and no rule has another mind
    if word[:1].isspace():  # one with the space before it
        return _UNSETTLED
    kept = []
    for token, _, read in _scan(word + behind, 0, len(word)):
        if read > len(word) + 1:
            return _UNSETTLED
        if token not in DROPPED:
            kept.append(f" {token}")
    if kept and kept[-1] != kept[-1].rstrip():  # which is lost at the end of a line
        return _UNSETTLED
    return "".join(kept)


def _slowly(text: str, start: int, stop: int) -> str:
    """Give the tokens of the line of a text that begins and ends at these places."""
    tokens = []
    for token, end, _ in _scan(text, start, stop):
        if end > stop:  # a tag that is not closed on its line: let it not take the next one
            return _slowly(text[start:stop], 0, stop - start)
        if token:
            tokens.append(token)
    line = " ".join(tokens).rstrip().split(" ")
    return " ".join(token for token in line if token not in DROPPED)


def _scan(text: str, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """Give tokens that begin before a place: as written, their ends, and how far was read."""
    lexer, at = _lexer(), start
    while at < stop:
        rule, end, read = lexer.match(text, at)
        token = TOKENS[rule] if rule >= 0 else _UNKNOWN
        yield _written(text[at:end], token.kind, token.back), end - token.back, read
        at = end - token.back


@cache
def _lexer() -> Lexer:
    rules = [Rule(token.pattern, token.following) for token in TOKENS]
    return Lexer(rules, NAMES, classes(), TWINS)


def _written(text: str, kind: Kind, back: int) -> str:
    """Give the token that a text of this kind becomes."""
    match kind:
        case "skip":
            return ""
        case "plain":
            text = text[: len(text) - back]
        case "word":
            text = text.replace("\u00ad", "") or "-"
        case "quotes":
            text = text.replace("&apos;", "'").replace("&quot;", "''").translate(_QUOTES)
        case "entity":
            text = _ENTITY.sub(lambda found: _ENTITIES[found[0].lower()], text)
        case "spaced":
            text = text.replace(" ", "\u00a0")
        case "phone":
            text = text.translate(_BRACKETS)
        case "sign":
            text = _SIGNS.get(text, text)
        case "initial" if len(text) == 2:
            text = text[:1]
    return _characters(text).lower()


def _units(text: str) -> str:
    """Write characters beyond the first 65,536 as two, as Java has them."""
    return text if text.isascii() else _BEYOND.sub(_halves, text)


def _halves(found: re.Match[str]) -> str:
    above = ord(found[0]) - 0x10000
    return chr(0xD800 + (above >> 10)) + chr(0xDC00 + (above & 0x3FF))


def _characters(units: str) -> str:
    """Undo `_units`."""
    if units.isascii():
        return units
    return units.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
