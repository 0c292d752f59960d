"""Texts about scenes: the true ones are found true, each wrong attribute is found wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.data.phrases import alt_text, boilerplate, describe, truncate
from blip.data.scenes import Dice, Group, Scene, alter, draw_scene
from blip.data.statements import describes, judge

SCENE = Scene(
    (
        Group("ring", "red", "small", "striped", 2),
        Group("bar", "blue", "large", "plain", 1),
    ),
    "above",
    "dark",
    "checked",
)


@pytest.mark.parametrize(
    "text",
    [
        "two small striped red rings above a large plain blue bar on a dark checked background",
        "a blue bar below two red rings",
        "a blue bar with two rings above it",
        "above a blue bar there are a pair of scarlet hoops",
        "Rings And Bar - poster",
        "one bar",
        "azure plank against a dim wall",
    ],
)
def test_true_texts(text: str) -> None:
    assert describes(SCENE, text)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("two green rings above a blue bar", {"colour"}),
        ("two red rings above a red bar", {"colour"}),
        ("two red crosses above a blue bar", {"shape"}),
        ("a red ring above a blue bar", {"count"}),
        ("three red rings", {"count"}),
        ("blue bars", {"count"}),
        ("two red rings below a blue bar", {"relation"}),
        ("a blue bar with two red rings to its left", {"relation"}),
        ("two large red rings", {"size"}),
        ("two dotted red rings", {"texture"}),
        ("two red rings on a light background", {"background"}),
        ("two red rings, a blue bar and a green pole", {"shape", "colour", "count"}),
    ],
)
def test_wrong_texts(text: str, wrong: set[str]) -> None:
    assert {attribute for attribute, true in judge(SCENE, text).items() if not true} == wrong
    assert not describes(SCENE, text)


@pytest.mark.parametrize("text", ["", "IMG_2041.JPG", "a red", "buy now", "on the left of a"])
def test_texts_that_say_nothing(text: str) -> None:
    assert judge(SCENE, text) == {}
    assert not describes(SCENE, text)


def test_swapped_colours_are_wrong() -> None:
    assert judge(SCENE, "two blue rings above a red bar")["colour"] is False


def test_relation_needs_both_groups() -> None:
    lone = Scene(SCENE.groups[:1], None, "dark", "plain")
    assert not describes(lone, "two red rings above a blue bar")
    assert describes(lone, "two red rings")


seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(seeds)
def test_what_people_and_pages_say_is_true(seed: int) -> None:
    dice = Dice(seed)
    scene = draw_scene(dice)
    for text in (describe(scene, dice), alt_text(scene, dice)):
        assert describes(scene, text), text
        assert describes(scene.turned(), text), text


@settings(deadline=None)
@given(seeds, st.sampled_from(["colour", "shape", "count", "relation"]))
def test_what_is_said_of_an_altered_scene_is_wrong_in_that_alone(seed: int, attribute: str) -> None:
    dice = Dice(seed)
    scene = draw_scene(dice)
    if attribute == "relation" and scene.relation is None:
        return
    altered = alter(scene, attribute, dice)  # type: ignore[arg-type]
    assert altered != scene
    verdict = judge(scene, describe(altered, dice))
    # Other attributes may be told of the other group where that explains the text better.
    if not all(verdict.values()) and scene.relation is None:
        assert {a for a, true in verdict.items() if not true} == {attribute}


@settings(deadline=None)
@given(seeds)
def test_boilerplate_says_nothing(seed: int) -> None:
    dice = Dice(seed)
    assert judge(draw_scene(dice), boilerplate(dice)) == {}


@settings(deadline=None)
@given(seeds)
def test_truncated_texts_are_beginnings(seed: int) -> None:
    dice = Dice(seed)
    text = describe(draw_scene(dice), dice)
    cut = truncate(text, dice)
    if cut is not None:
        start = cut.rstrip(" .")
        assert text.startswith(start + " ")
        assert len(start.split()) >= 2


@settings(deadline=None)
@given(st.text(max_size=60), st.lists(st.sampled_from(["ring", "bar", "two", "red", "above"])))
def test_any_text_can_be_judged(noise: str, words: list[str]) -> None:
    stated = judge(SCENE, f"{noise} {' '.join(words)}")
    assert all(isinstance(true, bool) for true in stated.values())
