"""Whether a text is true of a drawn scene, attribute by attribute: the judge of synthetic captions.

It reads the words of `blip.data.phrases`, in any order that a captioner may put them.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from blip.data.phrases import (
    COLOUR_WORDS,
    NOUNS,
    PATTERN_WORDS,
    SIZE_WORDS,
    TEXTURE_WORDS,
    TONE_WORDS,
)
from blip.data.scenes import OPPOSITE, Group, Relation, Scene

Attribute = Literal["shape", "colour", "count", "relation", "size", "texture", "background"]


def judge(scene: Scene, text: str) -> dict[Attribute, bool]:
    """Tell of each attribute that a text states whether it is true of the scene.

    The text is read as a row of mentions ("two small red rings"), each of a group. Mentions are
    matched with the scene's groups in the way that makes the most statements true; whatever is
    said of a group that is not there is false. An attribute is true if it is so in every mention
    that states it. A singular noun without a number says one, a plural one more than one. The
    relation is that of the first mention to the second if its word stands between them ("a ring
    above a bar"), else of the second to the first ("a bar with a ring above it", "above a bar
    there is a ring"); beside a single mention it says nothing. An unknown word ends a mention.
    """
    reading = _read(text)
    mentions = reading.mentions[: len(scene.groups) + 1]
    if not mentions:
        return {}
    places = [*scene.groups, *[None] * max(len(mentions) - len(scene.groups), 0)]
    matchings = itertools.permutations(range(len(places)), len(mentions))
    stated = [_state(scene, reading.relation, mentions, places, chosen) for chosen in matchings]
    best = min(stated, key=lambda statements: sum(not true for _, true in statements))
    if reading.background:
        place = {scene.tone, f"pattern {scene.pattern}"}
        best.append(("background", reading.background <= place))
    return {attribute: all(true for a, true in best if a == attribute) for attribute, _ in best}


def describes(scene: Scene, text: str) -> bool:
    """Tell whether a text speaks of the scene and all that it states is true (see `judge`)."""
    verdict = judge(scene, text)
    return bool(verdict) and all(verdict.values())


@dataclass
class _Mention:
    """What a text says of one group; None: nothing."""

    shape: str
    colour: str | None
    size: str | None
    texture: str | None
    counts: tuple[int, ...]

    def state(self, group: Group | None) -> list[tuple[Attribute, bool]]:
        """Judge it as said of a group."""
        said: list[tuple[Attribute, str | None]] = [
            ("shape", self.shape),
            ("colour", self.colour),
            ("size", self.size),
            ("texture", self.texture),
        ]
        statements: list[tuple[Attribute, bool]] = [
            (attribute, group is not None and getattr(group, attribute) == value)
            for attribute, value in said
            if value
        ]
        return [*statements, ("count", group is not None and group.count in self.counts)]


@dataclass
class _Reading:
    """What a text says: of groups, of the first one's relation to the second, of the background."""

    mentions: list[_Mention] = field(default_factory=list)
    relation: Relation | None = None
    background: set[str] = field(default_factory=set)


def _state(
    scene: Scene,
    relation: Relation | None,
    mentions: Sequence[_Mention],
    places: Sequence[Group | None],
    chosen: Sequence[int],
) -> list[tuple[Attribute, bool]]:
    """Judge every statement of the mentions as said of the places chosen for them."""
    pairs = zip(mentions, chosen, strict=True)
    statements = [statement for mention, i in pairs for statement in mention.state(places[i])]
    if relation is not None and len(mentions) > 1:
        told = scene if chosen[0] == 0 else scene.turned()
        both = {chosen[0], chosen[1]} == {0, 1}
        statements.append(("relation", both and told.relation == relation))
    return statements


def _meanings(words: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {word: meaning for meaning, synonyms in words.items() for word in synonyms}


_SHAPE_OF = {
    word: (shape, plural)
    for shape, nouns in NOUNS.items()
    for noun in nouns
    for plural, word in enumerate(noun)
}
_ATTRIBUTE_OF = {
    word: (attribute, meaning)
    for attribute, words in (
        ("colour", COLOUR_WORDS),
        ("size", SIZE_WORDS),
        ("texture", TEXTURE_WORDS),
    )
    for word, meaning in _meanings(words).items()
}
_BACKGROUND_OF = {
    **_meanings(TONE_WORDS),
    **{word: f"pattern {pattern}" for word, pattern in _meanings(PATTERN_WORDS).items()},
}
_COUNT_OF = {"a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "pair": 2, "three": 3, "trio": 3}
_RELATION_OF: dict[str, Relation] = {
    "left": "left",
    "right": "right",
    "above": "above",
    "over": "above",
    "top": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
}


def _read(text: str) -> _Reading:
    reading = _Reading()
    said: dict[str, str] = {}
    counts: tuple[int, ...] = ()
    heard: tuple[Relation, int] | None = None  # the first relation, and the mentions before it
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in _COUNT_OF:
            counts = (_COUNT_OF[word],)
        elif word in _ATTRIBUTE_OF:
            attribute, meaning = _ATTRIBUTE_OF[word]
            said[attribute] = meaning
        elif word in _SHAPE_OF:
            shape, plural = _SHAPE_OF[word]
            counts = counts or ((2, 3) if plural else (1,))
            reading.mentions.append(
                _Mention(shape, said.get("colour"), said.get("size"), said.get("texture"), counts)
            )
            said, counts = {}, ()
        elif word in _RELATION_OF:
            heard = heard or (_RELATION_OF[word], len(reading.mentions))
        elif word in _BACKGROUND_OF:
            reading.background.add(_BACKGROUND_OF[word])
        elif word != "of":
            said, counts = {}, ()
    if heard is not None:
        relation, before = heard
        reading.relation = relation if before == 1 else OPPOSITE[relation]
    return reading
