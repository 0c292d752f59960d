"""What a scene of the demo world is: groups of shapes, with attributes, in a relation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

T = TypeVar("T")

Relation = Literal["left", "right", "above", "below"]

# The first four are told apart by their mass, which a tiny model learns in minutes; fine outlines it does not.
SHAPES = ("square", "ring", "bar", "pole", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
TONES = ("light", "grey", "dark")
PATTERNS = ("plain", "speckled", "checked")
RELATIONS: tuple[Relation, ...] = ("left", "right", "above", "below")
OPPOSITE: dict[Relation, Relation] = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
}


class Dice:
    """Draws that are the same on every machine, each stream from a seed of its own.

    NumPy froze the streams of `RandomState` (NEP 19); its uniform doubles are made of 53 random
    bits each, so that nothing is rounded.
    """

    def __init__(self, *seed: int) -> None:
        self._state = np.random.RandomState(list(seed))
        self._uniform: list[float] = []

    def uniform(self) -> float:
        """Draw a number from [0, 1)."""
        if not self._uniform:
            self._uniform = self._state.random_sample(64).tolist()
        return self._uniform.pop()

    def below(self, n: int) -> int:
        """Draw a whole number from 0 to n - 1."""
        return int(self.uniform() * n)

    def around(self, n: int) -> int:
        """Draw a whole number from -n to n."""
        return self.below(2 * n + 1) - n

    def chance(self, probability: float) -> bool:
        """Say yes with a probability."""
        return self.uniform() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """Choose one, all alike."""
        return choices[self.below(len(choices))]

    def noise(self, shape: tuple[int, ...], n: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Draw an array of whole numbers from -n to n."""
        return (self._state.random_sample(shape) * (2 * n + 1)).astype(np.int32) - n


@dataclass(frozen=True)
class Group:
    """One to three equal shapes that stand together."""

    shape: str
    colour: str
    size: str
    texture: str
    count: int


@dataclass(frozen=True)
class Scene:
    """One group, or two of which the first is `relation` of the second, on a background.

    `tone` and `pattern` are the background's.
    """

    groups: tuple[Group, ...]
    relation: Relation | None
    tone: str
    pattern: str

    def to_json(self) -> dict[str, Any]:
        """Give it as plain JSON, as `truth.jsonl` holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Scene":
        """Read what `to_json` gave."""
        groups = tuple(Group(**group) for group in value["groups"])
        return cls(groups, value["relation"], value["tone"], value["pattern"])

    def turned(self) -> "Scene":
        """Give the same scene told from its second group."""
        if self.relation is None:
            return self
        return replace(self, groups=self.groups[::-1], relation=OPPOSITE[self.relation])


# How common things are: mostly what a tiny model can learn in minutes, seldom what it cannot.
_TWO_GROUPS = 0.5
_ANOTHER = 0.3  # one more of the same in a group
_TEXTURED = 0.2
_SHAPES = (*SHAPES[:4] * 3, SHAPES[4])
_SIZES = ("small", *("large",) * 7)
_PATTERNS = (*("plain",) * 6, "speckled", "checked")


def draw_scene(dice: Dice) -> Scene:
    """Draw a scene: one in two has two groups, which differ in shape or colour."""
    tone, pattern = dice.pick(TONES), dice.pick(_PATTERNS)
    if not dice.chance(_TWO_GROUPS):
        return Scene((_draw_group(dice, 3),), None, tone, pattern)
    first = second = _draw_group(dice, 2)
    while (second.shape, second.colour) == (first.shape, first.colour):
        second = _draw_group(dice, 2)
    return Scene((first, second), dice.pick(RELATIONS), tone, pattern)


def alter(
    scene: Scene, attribute: Literal["colour", "shape", "count", "relation"], dice: Dice
) -> Scene:
    """Give the scene with the relation, or an attribute of one group, changed to another value."""
    if attribute == "relation":
        return replace(scene, relation=_other(RELATIONS, scene.relation, dice))
    values: dict[str, Sequence[Any]] = {"colour": COLOURS, "shape": SHAPES, "count": (1, 2)}
    groups = list(scene.groups)
    i = dice.below(len(groups))
    value = _other(values[attribute], getattr(groups[i], attribute), dice)
    groups[i] = replace(groups[i], **{attribute: value})
    return replace(scene, groups=tuple(groups))


def _draw_group(dice: Dice, max_count: int) -> Group:
    count = 1
    while count < max_count and dice.chance(_ANOTHER):
        count += 1
    texture = dice.pick(TEXTURES[1:]) if dice.chance(_TEXTURED) else TEXTURES[0]
    return Group(dice.pick(_SHAPES), dice.pick(COLOURS), dice.pick(_SIZES), texture, count)


def _other(values: Sequence[T], value: T | None, dice: Dice) -> T:
    return dice.pick([v for v in values if v != value])
