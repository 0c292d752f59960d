"""Penn Treebank tokens of captions, as the caption metrics count them, without Java.

The published scores tokenise with Stanford's PTBTokenizer, lower-case, and drop punctuation tokens
(pycocoevalcap). Here are its rules that captions meet: clitics (`it 's`, `do n't`), a final period
apart from abbreviations, brackets as words, numbers, hyphens and slashes inside words. What they
do not name (emoticons, rare abbreviations, signs for fractions) is split at the sign.
"""

import html
import re

DROPPED = frozenset(['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_SIGNS = str.maketrans(
    {
        "\u201c": '"',
        "\u201d": '"',
        "\u2018": "'",
        "\u2019": "'",
        "\u2013": "--",
        "\u2014": "--",
        "\u2026": "...",
    }
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_ABBREVIATIONS = (
    "mr|mrs|ms|dr|st|jr|sr|prof|gen|col|capt|lt|sgt|rev|hon|inc|co|corp|ltd|bros|vs|etc|ave|blvd|rd"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|dept|mt|ft|est"
)
_LETTER = r"[^\W\d_]"
_CLITIC = r"'(?:s|m|d|ll|re|ve)(?!\w)"
_TOKEN = re.compile(
    rf"""
      https?://[^\s"]+ | www\.[^\s"]+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+    # addresses
    | {_LETTER}(?:\.{_LETTER})+(?!\w)\.? | {_LETTER}\.(?!\w)           # u.s., p.m., j.
    | (?:{_ABBREVIATIONS})\.(?!\w)
    | can(?=not(?!\w)) | (?<=can)not(?!\w)
    | (?:gon|wan)(?=na(?!\w)) | (?:got)(?=ta(?!\w)) | (?:gim|lem)(?=me(?!\w))
    | (?:{_LETTER}|-)+?(?=n't(?!\w)) | n't(?!\w)                        # do n't
    | {_CLITIC} | 'n'(?!\w)
    | \d+(?:[.,:/-]\d+)+ | \.\d+                                        # 1,000  12:30  3/4
    | (?-i:[A-Z]+&[A-Z]+)                                               # AT&T
    | @?\w+(?:'(?!(?:s|m|d|ll|re|ve|t)(?!\w))\w+|[-/]+\w+)*             # words, t-shirt, o'clock
    | \.\.\.+ | --+ | [?!]{{2,}} | ``|'' | [^\w\s]
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokenize(caption: str) -> str:
    """Give a caption's tokens, lower-case, without punctuation, separated by single spaces."""
    text = html.unescape(caption).translate(_SIGNS)
    found = (match.group().lower() for match in _TOKEN.finditer(text))
    return " ".join(_BRACKETS.get(token, token) for token in found if token not in DROPPED)
