r"""A scanner that takes the longest match of its rules, as lex does, and of equally long ones the first.

(Python's `re` takes the first alternative that leads anywhere, which is another language.) All rules
become one automaton, whose states are made when a text first comes to them.

Patterns know `| * + ? {m,n} ( )`, sets like `[a-z_]` and `[^ ]`, in them `[:name:]`, names like
`{WORD}`, and a backslash before a sign that is meant as such, or as in `\n` and `\u00A0`; a dot is
a dot. Letters outside of sets match both cases; sets match what they show.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

Class = Callable[[str], bool]
"""Says whether it has a character."""


class Rule(NamedTuple):
    """What a token may look like.

    Attributes:
        pattern: Of the token.
        following: Of what must stand behind it. It counts for the length of the match, but is left
            for the next token; where several divisions are possible, the token is the longest.
    """

    pattern: str
    following: str = ""


class Match(NamedTuple):
    """A token that was found, or one character that begins none.

    Attributes:
        rule: The number of its rule, or -1.
        end: Where it ends.
        read: Where the scanner stopped reading: no character from here on had a say.
    """

    rule: int
    end: int
    read: int


class Lexer:
    """Rules that are ready to be matched.

    Args:
        rules: The rules, the more important first.
        names: Patterns that rules, and later patterns of these, call by name.
        classes: What `[:name:]` stands for.
        twins: Characters that a letter outside of sets matches besides its two cases.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        names: Mapping[str, str],
        classes: Mapping[str, Class],
        twins: Mapping[str, str],
    ) -> None:
        known: dict[str, _Node] = {}
        for name, pattern in names.items():
            known[name] = _Parser(pattern, known, classes, twins).parse()
        parsed = [
            [_Parser(pattern, known, classes, twins).parse() for pattern in rule if pattern]
            for rule in rules
        ]
        self._whole = _Automaton([_Sequence(parts) for parts in parsed])
        self._divided = {
            number: (_Automaton(parts[:1]), _Automaton(parts[1:]))
            for number, parts in enumerate(parsed)
            if len(parts) == 2
        }

    def match(self, text: str, start: int) -> Match:
        """Give the token that begins at a place of the text, before its end."""
        rule, end, read = self._whole.longest(text, start)
        if rule < 0:
            return Match(rule, start + 1, read)
        if rule in self._divided:
            token, following = self._divided[rule]
            ends = list(token.ends(text, start, end))
            end = next(at for at in reversed(ends) if end in following.ends(text, at, end))
        return Match(rule, end, read)


class _Characters(NamedTuple):
    """One of these characters, or of these classes; or, inverted, one of all others."""

    characters: frozenset[str]
    classes: frozenset[Class] = frozenset()
    inverted: bool = False

    def have(self, character: str) -> bool:
        found = character in self.characters
        if self.classes and not found:
            found = any(has(character) for has in self.classes)
        return found != self.inverted


class _Sequence(NamedTuple):
    parts: "Sequence[_Node]"


class _Choice(NamedTuple):
    parts: "Sequence[_Node]"


class _Repeated(NamedTuple):
    part: "_Node"
    least: int
    most: int | None


_Node = _Characters | _Sequence | _Choice | _Repeated


_TIMES = re.compile(r"[*+?]|\{(\d+),(\d*)\}|\{(\d+)\}")
_LIMITS: Mapping[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_NAME = re.compile(r"\{(\w+)\}")
_CLASS = re.compile(r"\[:(\w+):\]")
_TO = re.compile(r"-(?!\])")
_CHARACTER = re.compile(r"\\u([0-9A-F]{4})|\\([tnfr])|\\?(.)", re.DOTALL)


class _Parser:
    """Reads one pattern, from left to right."""

    def __init__(
        self,
        pattern: str,
        names: Mapping[str, _Node],
        classes: Mapping[str, Class],
        twins: Mapping[str, str],
    ) -> None:
        self._pattern, self._names, self._classes, self._twins = pattern, names, classes, twins
        self._at = 0

    def parse(self) -> _Node:
        """Give what the whole pattern says."""
        node = self._choice()
        assert self._at == len(self._pattern), f"{self._pattern!r}: stray sign at {self._at}"
        return node

    def _choice(self) -> _Node:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _Choice(parts)

    def _sequence(self) -> _Node:
        parts = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            parts.append(self._repeated(self._atom()))
        return parts[0] if len(parts) == 1 else _Sequence(parts)

    def _repeated(self, node: _Node) -> _Node:
        while found := self._match(_TIMES):
            if found[0] in _LIMITS:
                node = _Repeated(node, *_LIMITS[found[0]])
            elif found[3]:
                node = _Repeated(node, int(found[3]), int(found[3]))
            else:
                node = _Repeated(node, int(found[1]), int(found[2]) if found[2] else None)
        return node

    def _atom(self) -> _Node:
        if self._take("("):
            node = self._choice()
            assert self._take(")"), f"{self._pattern!r}: a bracket is open"
            return node
        if found := self._match(_NAME):
            return self._names[found[1]]
        if self._take("["):
            return self._set()
        letter = self._character()
        return _Characters(
            frozenset(letter.lower() + letter.upper() + self._twins.get(letter.lower(), ""))
        )

    def _set(self) -> _Node:
        inverted = self._take("^")
        characters: set[str] = set()
        classes: set[Class] = set()
        while not self._take("]"):
            if found := self._match(_CLASS):
                classes.add(self._classes[found[1]])
                continue
            first = last = self._character()
            if self._match(_TO):
                last = self._character()
            characters.update(map(chr, range(ord(first), ord(last) + 1)))
        return _Characters(frozenset(characters), frozenset(classes), inverted)

    def _character(self) -> str:
        found = self._match(_CHARACTER)
        assert found, f"{self._pattern!r}: ends too early"
        if found[1]:
            return chr(int(found[1], 16))
        return "\t\n\f\r"["tnfr".index(found[2])] if found[2] else found[3]

    def _take(self, sign: str) -> bool:
        found = self._pattern.startswith(sign, self._at)
        self._at += found
        return found

    def _match(self, signs: re.Pattern[str]) -> re.Match[str] | None:
        found = signs.match(self._pattern, self._at)
        if found:
            self._at = found.end()
        return found


class _State(dict[str, "_State | None"]):
    """Some places in the patterns, all that what was read may have led to.

    It tells where a character leads, which is found out when one first comes; None is nowhere.

    Attributes:
        steps: Over sets of characters, by their numbers, to places.
        rule: That is matched here, or -1.
    """

    def __init__(
        self, automaton: "_Automaton", steps: Sequence[tuple[int, int]], rule: int
    ) -> None:
        self._automaton, self.steps, self.rule = automaton, steps, rule

    def __missing__(self, character: str) -> "_State | None":
        found = self[character] = self._automaton.follow(self.steps, character)
        return found


class _Automaton:
    """Patterns as places, and steps between them: some over a character, some free."""

    def __init__(self, nodes: Sequence[_Node]) -> None:
        self._sets: dict[_Characters, int] = {}
        self._steps: list[list[tuple[int, int]]] = []  # a set, by its number, and a place
        self._free: list[list[int]] = []
        self._rules: dict[int, int] = {}
        self._having: dict[str, frozenset[int]] = {}
        self._reached: dict[int, frozenset[int]] = {}
        self._states: dict[frozenset[int], _State] = {}
        begin = self._place()
        for number, node in enumerate(nodes):
            end = self._add(node, self._behind(begin))
            self._rules[self._behind(end)] = number
        self._start = self._state(frozenset([begin]))

    def longest(self, text: str, start: int) -> tuple[int, int, int]:
        """Give the rule of the longest match, or -1; where it ends; and where reading stopped."""
        state, rule, end = self._start, -1, start
        for at in range(start, len(text)):
            following = state[text[at]]
            if following is None:
                return rule, end, at + bool(state.steps)
            state = following
            if state.rule >= 0:
                rule, end = state.rule, at + 1
        return rule, end, len(text) + bool(state.steps)

    def ends(self, text: str, start: int, stop: int) -> Iterator[int]:
        """Give the places up to `stop` where a match that begins at `start` may end."""
        state = self._start
        for at in range(start, stop):
            following = state[text[at]]
            if following is None:
                return
            state = following
            if state.rule >= 0:
                yield at + 1

    def follow(self, steps: Iterable[tuple[int, int]], character: str) -> _State | None:
        """Give the state that a character leads to."""
        if character not in self._having:
            self._having[character] = frozenset(
                number for characters, number in self._sets.items() if characters.have(character)
            )
        having = self._having[character]
        reached = frozenset([place for number, place in steps if number in having])
        return self._state(reached) if reached else None

    def _state(self, places: frozenset[int]) -> _State:
        """Give the state of these places and of all that free steps lead to from them."""
        if places not in self._states:
            reached = frozenset().union(*map(self._reach, places))
            steps = [step for place in reached for step in self._steps[place]]
            rules = [self._rules[place] for place in reached if place in self._rules]
            self._states[places] = _State(self, steps, min(rules, default=-1))
        return self._states[places]

    def _reach(self, place: int) -> frozenset[int]:
        """Give the places that free steps lead to, of those where a rule ends or a step begins."""
        if place not in self._reached:
            seen, ahead = {place}, [place]
            while ahead:
                new = [target for target in self._free[ahead.pop()] if target not in seen]
                seen.update(new)
                ahead += new
            kept = (other for other in seen if self._steps[other] or other in self._rules)
            self._reached[place] = frozenset(kept)
        return self._reached[place]

    def _add(self, node: _Node, start: int) -> int:
        """Add the places of a pattern behind a place, and give the last one."""
        match node:
            case _Characters():
                end = self._place()
                number = self._sets.setdefault(node, len(self._sets))
                self._steps[start].append((number, end))
            case _Sequence(parts):
                end = start
                for part in parts:
                    end = self._add(part, end)
            case _Choice(parts):
                end = self._place()
                for part in parts:
                    self._free[self._add(part, self._behind(start))].append(end)
            case _Repeated(part, least, most):
                for _ in range(least):
                    start = self._add(part, start)
                end = self._behind(start)
                if most is None:
                    self._free[self._add(part, self._behind(end))].append(end)
                for _ in range(least, most or 0):
                    start = self._add(part, self._behind(start))
                    self._free[start].append(end)
        return end

    def _behind(self, place: int) -> int:
        """Add a place that a free step leads to."""
        self._free[place].append(self._place())
        return self._free[place][-1]

    def _place(self) -> int:
        self._steps.append([])
        self._free.append([])
        return len(self._steps) - 1
