import pytest

from blip.metrics.lexing import Lexer, Match, Rule

DIGITS = {"digit": str.isdecimal}


def lexer(*rules: Rule) -> Lexer:
    return Lexer(rules, {"NUMBER": "[[:digit:]]+"}, DIGITS, {"k": "\u212a"})


@pytest.mark.parametrize(
    ("pattern", "text", "end"),
    [
        ("ab*", "abbbc", 4),
        ("a|ab|abc", "abcd", 3),  # the longest, not the first
        ("(ab)+", "ababa", 4),
        ("a{2,3}", "aaaa", 3),
        ("a{2}b?", "aab", 3),
        ("a{2,}", "aaaaa", 5),
        ("x(|y)z", "xz", 2),
        ("[^ab]+", "cd a", 3),
        ("{NUMBER}.{NUMBER}", "12.5.", 4),
        (r"\(a\)", "(a)", 3),
        (r"[\u0041-C\-]+", "A-CD", 3),
        ("ok", "O\u212a", 2),  # letters match their cases and twins
        ("[a]b", "aB", 2),  # sets do not
    ],
)
def test_the_longest_match(pattern: str, text: str, end: int) -> None:
    assert lexer(Rule(pattern)).match(text, 0)[:2] == (0, end)


def test_of_equals_the_first_rule_counts() -> None:
    rules = lexer(Rule("if"), Rule("[a-z]+"))
    assert [rules.match(text, 0)[:2] for text in ("if", "iffy", "or")] == [(0, 2), (1, 4), (1, 2)]


def test_what_follows_counts_and_is_left() -> None:
    rules = lexer(Rule("[a-z]+", "[a-z][!]"), Rule("[a-z]+"))
    assert rules.match("abc!", 0)[:2] == (0, 2)
    assert rules.match("abc?", 0)[:2] == (1, 3)
    assert rules.match("A", 0)[:2] == (-1, 1)  # no rule: one character


def test_a_match_tells_how_far_was_read() -> None:
    rules = lexer(Rule("ab"), Rule("a( b)*"))
    assert rules.match("ab c", 0) == Match(0, 2, 2)  # nothing longer begins so
    assert rules.match("a c", 0) == Match(1, 1, 3)  # the space might have, with a b
    assert rules.match("a", 0) == Match(1, 1, 2)  # what follows the text might too


@pytest.mark.parametrize("pattern", ["(a", "a)", "[a"])
def test_a_pattern_that_is_not_closed_is_our_bug(pattern: str) -> None:
    with pytest.raises(AssertionError):
        lexer(Rule(pattern))
