"""Scenes and the draws that make them."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from blip.data.scenes import Dice, Scene, draw_scene


def test_draws_are_frozen() -> None:
    dice = Dice(7, 1)
    assert [dice.below(1000) for _ in range(5)] == [377, 322, 632, 291, 803]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_json_round_trip(seed: int) -> None:
    scene = draw_scene(Dice(seed))
    assert Scene.from_json(scene.to_json()) == scene


def test_turned_twice_is_the_same() -> None:
    for seed in range(50):
        scene = draw_scene(Dice(seed))
        assert scene.turned().turned() == scene
        assert (scene.turned() == scene) == (scene.relation is None)


def test_groups_of_a_scene_differ() -> None:
    scenes = [draw_scene(Dice(seed)) for seed in range(400)]
    pairs = [scene.groups for scene in scenes if scene.relation]
    assert 0.37 < len(pairs) / len(scenes) < 0.63  # one in two; 5 standard errors are 0.13
    assert all((a.shape, a.colour) != (b.shape, b.colour) for a, b in pairs)
    counts = Counter(group.count for scene in scenes for group in scene.groups)
    assert counts[1] > counts[2] > counts[3] > 0
