"""The demo world: a seeded collection of drawn scenes that stands in for photos from the web and for clean data.

It is written as a user's own raw data would lie: `web`, `human` and `test`, each a tar of PNGs with a BLIP JSON of
captions, and beside them `truth.jsonl`. Equal configurations give equal bytes on every machine.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from blip.config import Noise, World
from blip.data.drawing import draw_picture, encode_png
from blip.data.phrases import alt_text, boilerplate, describe, describes, judge, truncate
from blip.data.scenes import Dice, Scene, alter, draw_scene
from blip.data.tar import TarWriter
from blip.data.truth import TRUTH, Truth, write_truth
from blip.errors import ConfigError
from blip.files import atomic_file
from blip.progress import Progress

MIN_SIDE = 32  # below this, shapes cannot be told apart
TRIES = 1000

# The kinds that only some scenes can have come first, so that they find enough of them.
KINDS = ("relation", "mismatch", "colour", "shape", "count", "boilerplate", "truncated")

_SPLITS = ("web", "human", "test")
_SCENE, _PICTURE, _TEXT, _KIND = range(
    4
)  # what a draw is for: each image has a stream of its own for each


def draw_world(config: World, out: Path) -> None:
    """Draw the world into a folder.

    Args:
        config: Its sizes, seed and noise.
        out: Receives `{web,human,test}.{tar,json}` and `truth.jsonl`. In the JSON, `caption` is one text for `web`,
            and a list of `captions_per_image` texts for the others (of fewer, where a scene has no more to say).

    Raises:
        ConfigError: The images are too small to show anything, or the web split too small for its noise.
    """
    if config.image_size < MIN_SIDE:
        raise ConfigError(
            f"world.image_size is {config.image_size}: shapes need at least {MIN_SIDE}"
        )
    counts = {"web": config.web, "human": config.human, "test": config.test}
    progress = Progress("draw world", sum(counts.values()), "images")
    truths: list[Truth] = []
    for split, count in counts.items():
        scenes = [draw_scene(_dice(config, split, i, _SCENE)) for i in range(count)]
        names = [f"{split}-{i:06}.png" for i in range(count)]
        _write_images(config, split, names, scenes, out / f"{split}.tar", progress)
        if split == "web":
            drawn = _alt_texts(config, scenes)
            truths += [
                Truth(n, text, kind, s)
                for n, s, (text, kind) in zip(names, scenes, drawn, strict=True)
            ]
            _write_captions(out / "web.json", names, [text for text, _ in drawn])
            continue
        texts = [_descriptions(scene, config, split, i) for i, scene in enumerate(scenes)]
        _write_captions(out / f"{split}.json", names, texts)
        if split == "test":
            truths += [
                Truth(n, t, "clean", s)
                for n, s, ts in zip(names, scenes, texts, strict=True)
                for t in ts
            ]
    write_truth(out / TRUTH, truths)


def _dice(config: World, split: str, image: int, purpose: int) -> Dice:
    return Dice(config.seed % 2**32, _SPLITS.index(split), image, purpose)


def _write_images(
    config: World,
    split: str,
    names: Sequence[str],
    scenes: Sequence[Scene],
    path: Path,
    progress: Progress,
) -> None:
    with TarWriter(path) as tar:
        for i, (name, scene) in enumerate(zip(names, scenes, strict=True)):
            picture = draw_picture(scene, config.image_size, _dice(config, split, i, _PICTURE))
            tar.add(name, encode_png(picture))
            progress.advance()


def _write_captions(path: Path, names: Sequence[str], captions: Sequence[Any]) -> None:
    pairs = zip(names, captions, strict=True)
    lines = [json.dumps({"image": name, "caption": caption}) for name, caption in pairs]
    with atomic_file(path) as file:
        file.write(("[\n" + ",\n".join(lines) + "\n]\n").encode())


def _descriptions(scene: Scene, config: World, split: str, image: int) -> list[str]:
    """Give different true captions of a scene."""
    dice = _dice(config, split, image, _TEXT)
    found: dict[str, None] = {}
    for _ in range(20 * config.captions_per_image):
        if len(found) == config.captions_per_image:
            break
        found[describe(scene, dice)] = None
    return list(found)


def _alt_texts(config: World, scenes: Sequence[Scene]) -> list[tuple[str, str]]:
    """Give each web image its text and the text's kind."""
    kinds = _assign_kinds(config, scenes)
    return [
        (_alt_text(scene, kind, scenes, _dice(config, "web", i, _TEXT)), kind)
        for i, (scene, kind) in enumerate(zip(scenes, kinds, strict=True))
    ]


def _assign_kinds(config: World, scenes: Sequence[Scene]) -> list[str]:
    """Say which images get which kind of noise: as many as their share, drawn without regard to the scene."""
    chances = [_dice(config, "web", i, _KIND).uniform() for i in range(len(scenes))]
    left = sorted(range(len(scenes)), key=lambda i: (chances[i], i))
    kinds = ["clean"] * len(scenes)
    for kind in KINDS:
        able = [i for i in left if kind != "relation" or scenes[i].relation]
        chosen = set(able[: _share(config.noise, kind, len(scenes))])
        left = [i for i in left if i not in chosen]
        for i in chosen:
            kinds[i] = kind
    return kinds


def _share(noise: Noise, kind: str, total: int) -> int:
    return int(getattr(noise, kind) * total + 0.5)


def _alt_text(scene: Scene, kind: str, scenes: Sequence[Scene], dice: Dice) -> str:
    match kind:
        case "clean":
            return alt_text(scene, dice)
        case "boilerplate":
            return boilerplate(dice)
        case "truncated":
            return _first(
                cut for cut in (truncate(alt_text(scene, dice), dice) for _ in range(TRIES)) if cut
            )
        case "mismatch":
            return _first(
                t
                for t in _draws(lambda: alt_text(dice.pick(scenes), dice))
                if not describes(scene, t)
            )
    attribute = cast(Literal["colour", "shape", "count", "relation"], kind)
    draws = _draws(lambda: alt_text(alter(scene, attribute, dice), dice))
    return _first(text for text in draws if not judge(scene, text).get(attribute, True))


def _draws(draw: Callable[[], str]) -> Iterator[str]:
    return (draw() for _ in range(TRIES))


def _first(texts: Iterator[str]) -> str:
    """Give the first; noise that happens to be true of its scene was drawn again."""
    for text in texts:
        return text
    raise ConfigError(
        "world.web is too small for its noise: no text was found that is wrong of its image"
    )
