"""Words for scenes: what people and web pages say of one, and whether a text is true of it."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from blip.data.scenes import OPPOSITE, Dice, Group, Relation, Scene

Attribute = Literal["shape", "colour", "count", "relation", "size", "texture", "background"]

NOUNS = {
    "square": (("square", "squares"), ("block", "blocks")),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "bar": (("bar", "bars"), ("plank", "planks")),
    "pole": (("pole", "poles"), ("post", "posts")),
    "cross": (("cross", "crosses"), ("plus", "pluses")),
}
COLOUR_WORDS = {
    "red": ("red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
TEXTURE_WORDS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
}
TONE_WORDS = {"light": ("light", "pale"), "grey": ("grey", "gray"), "dark": ("dark", "dim")}
PATTERN_WORDS = {
    "plain": ("smooth",),
    "speckled": ("speckled", "grainy"),
    "checked": ("checked", "chequered"),
}
BACKGROUND_NOUNS = ("background", "backdrop", "ground", "wall")
COUNT_WORDS: dict[int, tuple[str, ...]] = {
    1: ("one", "a single"),
    2: ("two", "a pair of"),
    3: ("three", "a trio of"),
}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
RELATION_TO_IT: dict[Relation, tuple[str, ...]] = {
    "left": ("to its left", "on its left side"),
    "right": ("to its right", "on its right side"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it"),
}
VERBS = (("is", "are"), ("sits", "sit"), ("stands", "stand"), ("lies", "lie"))


def describe(scene: Scene, dice: Dice) -> str:
    """Say what a person would of a scene: true, in varied phrasing, seldom everything."""
    if dice.chance(0.5):
        scene = scene.turned()
    text = (
        _human_one(scene, dice)
        if scene.relation is None
        else _human_two(scene, scene.relation, dice)
    )
    if dice.chance(0.2 if scene.relation else 0.5):
        text += f" {dice.pick(('on', 'against'))} a {_background(scene, dice)}"
    return text


def alt_text(scene: Scene, dice: Dice) -> str:
    """Say what a careful web page would of a scene: true, terse, with the trimmings of the web."""
    if dice.chance(0.5):
        scene = scene.turned()
    parts = [_terse(group, dice) for group in scene.groups]
    if scene.relation is None or dice.chance(0.15):
        text = parts[0]
    elif dice.chance(0.65):
        text = f"{parts[0]} {dice.pick(RELATION_WORDS[scene.relation])} {parts[1]}"
    else:
        text = f"{parts[0]}{dice.pick((' and ', ' with ', ', ', ' & '))}{parts[1]}"
    if dice.chance(0.15):
        text += f" on {_background(scene, dice)}"
    if dice.chance(0.3):
        text = f"{dice.pick(('photo of', 'image of', 'stock photo :', 'drawing of', 'print of', 'design :'))} {text}"
    if dice.chance(0.3):
        text += dice.pick(
            (
                " stock image",
                " free download",
                " wall art",
                " clip art",
                " - poster",
                " | home",
                ", new",
            )
        )
    return text.title() if dice.chance(0.15) else text


def boilerplate(dice: Dice) -> str:
    """Say what web pages say instead: file names, dates, shop texts."""
    number, year, day = 1000 + dice.below(9000), 2004 + dice.below(16), 1 + dice.below(28)
    month = dice.pick(("january", "march", "may", "july", "august", "october", "december"))
    return dice.pick(
        (
            f"IMG_{number}.JPG",
            f"DSC {number}",
            f"image {1 + day % 9} of {10 + day}",
            f"{day} {month} {year}",
            f"posted by admin on {day} {month}",
            f"photo taken in {month} {year}",
            "buy now with free shipping",
            f"add to cart , only {day} dollars",
            f"sale ! {5 * (1 + day % 12)} % off today",
            "click here to see more",
            "no image available",
            "best seller of the week",
            f"copyright {year} , all rights reserved",
            "home page of our shop",
        )
    )


def truncate(text: str, dice: Dice) -> str | None:
    """Cut a caption off in the middle of a phrase: after a word that asks for another. None where it has no such place."""
    words = text.split()
    open_words = [i for i in range(1, len(words) - 1) if words[i].lower() in _OPEN]
    if not open_words:
        return None
    return " ".join(words[: dice.pick(open_words) + 1]) + dice.pick(("", " ...", "..."))


def judge(scene: Scene, text: str) -> dict[Attribute, bool]:
    """Tell of each attribute that a text states whether it is true of the scene.

    The text is read as a row of mentions ("two small red rings"), each of a group. Mentions are matched with the
    scene's groups in the way that makes the most statements true; what is said of a group that is not there is false.
    An attribute is true if it is so in every mention that states it. A singular noun without a number says one, a
    plural one says more than one. The relation is that of the first mention to the second if its word stands between
    them ("a ring above a bar"), else of the second to the first ("a bar with a ring above it", "above a bar there is
    a ring"); with one mention alone it says nothing. Words that are not known end a mention and are else ignored.
    """
    reading = _read(text)
    mentions = reading.mentions[: len(scene.groups) + 1]
    if not mentions:
        return {}
    places = [*scene.groups, *[None] * max(len(mentions) - len(scene.groups), 0)]
    matchings = itertools.permutations(range(len(places)), len(mentions))
    statements = [_statements(scene, reading, mentions, places, chosen) for chosen in matchings]
    best = min(statements, key=lambda stated: sum(not true for _, true in stated))
    if reading.background:
        place = {scene.tone, f"pattern {scene.pattern}"}
        best.append(("background", reading.background <= place))
    return {attribute: all(true for a, true in best if a == attribute) for attribute, _ in best}


def describes(scene: Scene, text: str) -> bool:
    """Tell whether a text speaks of the scene and everything that it states is true (see `judge`)."""
    verdict = judge(scene, text)
    return bool(verdict) and all(verdict.values())


@dataclass
class _Mention:
    """What a text says of one group; None and (): nothing."""

    shape: str
    colour: str | None
    size: str | None
    texture: str | None
    counts: tuple[int, ...]

    def judge(self, group: Group | None) -> list[tuple[Attribute, bool]]:
        stated: list[tuple[Attribute, str | None]] = [
            ("shape", self.shape), ("colour", self.colour), ("size", self.size), ("texture", self.texture),
        ]  # fmt: skip
        verdicts: list[tuple[Attribute, bool]] = [
            (a, group is not None and getattr(group, a) == value) for a, value in stated if value
        ]
        verdicts.append(("count", group is not None and group.count in self.counts))
        return verdicts


@dataclass
class _Reading:
    """What a text says: of groups, of the first one's relation to the second, of the background."""

    mentions: list[_Mention] = field(default_factory=list)
    relation: Relation | None = None
    background: set[str] = field(default_factory=set)


def _statements(
    scene: Scene,
    reading: _Reading,
    mentions: Sequence[_Mention],
    places: Sequence[Group | None],
    chosen: Sequence[int],
) -> list[tuple[Attribute, bool]]:
    """Judge every statement of the mentions about the places chosen for them."""
    stated = [s for m, i in zip(mentions, chosen, strict=True) for s in m.judge(places[i])]
    if reading.relation is not None and len(mentions) > 1:
        told = scene if chosen[0] == 0 else scene.turned()
        both = {chosen[0], chosen[1]} == {0, 1}
        stated.append(("relation", both and told.relation == reading.relation))
    return stated


def _meanings(words: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {word: meaning for meaning, synonyms in words.items() for word in synonyms}


_SHAPE_OF = {
    word: (shape, i)
    for shape, nouns in NOUNS.items()
    for noun in nouns
    for i, word in enumerate(noun)
}
_COUNT_OF = {"a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "pair": 2, "three": 3, "trio": 3}
_RELATION_OF: dict[str, Relation] = {
    "left": "left", "right": "right", "above": "above", "over": "above", "top": "above",
    "below": "below", "under": "below", "beneath": "below",
}  # fmt: skip
_ATTRIBUTE_OF = {
    word: (attribute, meaning)
    for attribute, words in (
        ("colour", COLOUR_WORDS),
        ("size", SIZE_WORDS),
        ("texture", TEXTURE_WORDS),
    )
    for word, meaning in _meanings(words).items()
}
_BACKGROUND_OF = _meanings(TONE_WORDS) | {
    w: f"pattern {p}" for w, p in _meanings(PATTERN_WORDS).items()
}
_OPEN = {
    *_COUNT_OF,
    *_ATTRIBUTE_OF,
    *_RELATION_OF,
    "of",
    "the",
    "and",
    "with",
    "is",
    "are",
    "its",
    "on",
} - {"single"}


def _read(text: str) -> _Reading:
    reading = _Reading()
    said: dict[str, str] = {}
    counts: tuple[int, ...] = ()
    relation_at: tuple[Relation, int] | None = None
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
            relation_at = relation_at or (_RELATION_OF[word], len(reading.mentions))
        elif word in _BACKGROUND_OF:
            reading.background.add(_BACKGROUND_OF[word])
        elif word != "of":
            said, counts = {}, ()
    if relation_at is not None:
        relation, after = relation_at
        reading.relation = relation if after == 1 else OPPOSITE[relation]
    return reading


def _human_one(scene: Scene, dice: Dice) -> str:
    group = scene.groups[0]
    phrase = _full(group, dice)
    there = "there is" if group.count == 1 else "there are"
    starts: tuple[str, ...] = (
        "",
        "",
        f"{there} ",
        "a drawing of ",
        "we see ",
        "this shows ",
        f"{there} only ",
    )
    return dice.pick(starts) + phrase


def _human_two(scene: Scene, relation: Relation, dice: Dice) -> str:
    first, second = (_full(group, dice) for group in scene.groups)
    many = scene.groups[0].count > 1
    there = "there are" if many else "there is"
    if dice.chance(0.8):
        words = dice.pick(RELATION_WORDS[relation])
        shapes: tuple[Callable[[], str], ...] = (
            lambda: f"{first} {words} {second}",
            lambda: f"{first} {dice.pick(VERBS)[many]} {words} {second}",
            lambda: f"{second} with {first} {_to_it(relation, scene.groups[1].count > 1, dice)}",
            lambda: f"{words} {second} {there} {first}",
            lambda: f"{there} {first} {words} {second}",
        )
        return dice.pick(shapes)()
    return dice.pick(
        (
            f"{first} and {second}",
            f"{first} next to {second}",
            f"{first} beside {second}",
            f"{there} {first} and also {second}",
            f"a drawing of {first} and {second}",
        )
    )


def _to_it(relation: Relation, many: bool, dice: Dice) -> str:
    words = dice.pick(RELATION_TO_IT[relation])
    return words.replace("its", "their").replace("it", "them") if many else words


def _full(group: Group, dice: Dice) -> str:
    """Say a noun phrase with a determiner, as people do."""
    words = _attributes(group, dice, size=0.3, texture=0.5, colour=0.95)
    if group.count == 1 and not dice.chance(0.15):
        determiner = "an" if words[0][0] in "aeiou" else "a"
    else:
        determiner = _word(COUNT_WORDS[group.count], dice)
    return " ".join([determiner, *words])


def _terse(group: Group, dice: Dice) -> str:
    """Say a noun phrase without an article, as web pages do."""
    words = _attributes(group, dice, size=0.2, texture=0.3, colour=0.9)
    if group.count > 1 and dice.chance(0.7):
        words.insert(0, _word(COUNT_WORDS[group.count], dice))
    return " ".join(words)


def _attributes(group: Group, dice: Dice, size: float, texture: float, colour: float) -> list[str]:
    words = []
    if dice.chance(size):
        words.append(_word(SIZE_WORDS[group.size], dice))
    if dice.chance(texture if group.texture != "plain" else texture / 8):
        words.append(_word(TEXTURE_WORDS[group.texture], dice))
    if dice.chance(colour):
        words.append(_word(COLOUR_WORDS[group.colour], dice))
    noun = NOUNS[group.shape][0 if dice.chance(0.75) else 1]
    return [*words, noun[group.count > 1]]


def _background(scene: Scene, dice: Dice) -> str:
    words = [_word(PATTERN_WORDS[scene.pattern], dice)] if dice.chance(0.4) else []
    if not words or dice.chance(0.7):
        words.append(_word(TONE_WORDS[scene.tone], dice))
    return " ".join([*words, dice.pick(BACKGROUND_NOUNS)])


def _word(synonyms: Sequence[str], dice: Dice) -> str:
    """Choose a word: mostly the first, which is the common one."""
    return synonyms[0] if dice.chance(0.75) else dice.pick(synonyms)
