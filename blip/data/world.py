"""The demo world: a seeded collection of drawn scenes that stands in for web and human data.

It is written as a user's own raw data would lie: `web`, `human` and `test`, each a tar of PNGs with
a BLIP JSON of captions, and beside them `truth.jsonl`. Equal configurations give equal bytes on
every machine.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from blip.config import World
from blip.data.drawing import draw_picture, encode_png
from blip.data.phrases import alt_text, boilerplate, describe, truncate
from blip.data.scenes import Dice, Scene, alter, draw_scene
from blip.data.statements import describes, judge
from blip.data.tar import TarWriter
from blip.data.truth import TRUTH, Truth, write_truth
from blip.errors import ConfigError
from blip.files import write_text
from blip.progress import Progress

MIN_SIDE = 32  # below this, shapes cannot be told apart
TRIES = 1000

# Kinds of noise. The one that only some scenes can have comes first, so that it finds enough.
KINDS = ("relation", "mismatch", "colour", "shape", "count", "boilerplate", "truncated")

_SPLITS = ("web", "human", "test")
_SCENE, _PICTURE, _TEXT, _KIND = range(4)  # an image has a stream of draws for each


def draw_world(config: World, out: Path) -> None:
    """Draw the world into a folder.

    Args:
        config: Its sizes, seed and noise.
        out: Receives `{web,human,test}.{tar,json}`, and `truth.jsonl` about every text. In the
            JSON, `caption` is one text for `web`, and a list of `captions_per_image` texts for the
            others (of fewer, where a scene has no more to say).

    Raises:
        ConfigError: The images are too small, or the web split is too small for its noise.
    """
    if config.image_size < MIN_SIDE:
        raise ConfigError(f"world.image_size is {config.image_size}, shapes need {MIN_SIDE}")
    counts = (config.web, config.human, config.test)
    progress = Progress("draw world", sum(counts), "images")
    truths: list[Truth] = []
    for split, count in zip(_SPLITS, counts, strict=True):
        scenes = [draw_scene(_dice(config, split, i, _SCENE)) for i in range(count)]
        with TarWriter(out / f"{split}.tar") as tar:
            for i, scene in enumerate(scenes):
                dice = _dice(config, split, i, _PICTURE)
                tar.add(_name(split, i), encode_png(draw_picture(scene, config.image_size, dice)))
                progress.advance()
        told = _alt_texts(config, scenes) if split == "web" else _captions(config, split, scenes)
        _write_captions(out / f"{split}.json", told, single=split == "web")
        truths += itertools.chain.from_iterable(told)
    write_truth(out / TRUTH, truths)


def _dice(config: World, split: str, image: int, purpose: int) -> Dice:
    return Dice(config.seed % 2**32, _SPLITS.index(split), image, purpose)


def _name(split: str, image: int) -> str:
    return f"{split}-{image:06}.png"


def _write_captions(path: Path, told: Sequence[Sequence[Truth]], single: bool) -> None:
    lines = []
    for truths in told:
        texts = [truth.text for truth in truths]
        item = {"image": truths[0].source, "caption": texts[0] if single else texts}
        lines.append(json.dumps(item))
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def _captions(config: World, split: str, scenes: Sequence[Scene]) -> list[list[Truth]]:
    """Give different true captions of each scene."""
    told = []
    for i, scene in enumerate(scenes):
        dice = _dice(config, split, i, _TEXT)
        found: dict[str, None] = {}
        for _ in range(20 * config.captions_per_image):
            if len(found) < config.captions_per_image:
                found[describe(scene, dice)] = None
        told.append([Truth(_name(split, i), text, "clean", scene) for text in found])
    return told


def _alt_texts(config: World, scenes: Sequence[Scene]) -> list[list[Truth]]:
    """Give each web image one text, clean or of some kind of noise."""
    told = []
    for i, (scene, kind) in enumerate(zip(scenes, _assign_kinds(config, scenes), strict=True)):
        text = _alt_text(scene, kind, scenes, _dice(config, "web", i, _TEXT))
        told.append([Truth(_name("web", i), text, kind, scene)])
    return told


def _assign_kinds(config: World, scenes: Sequence[Scene]) -> list[str]:
    """Say which images get which kind of noise: exactly its share of them."""
    chances = [_dice(config, "web", i, _KIND).uniform() for i in range(len(scenes))]
    left = sorted(range(len(scenes)), key=lambda i: (chances[i], i))
    kinds = ["clean"] * len(scenes)
    for kind in KINDS:
        count = int(getattr(config.noise, kind) * len(scenes) + 0.5)
        able = [i for i in left if kind != "relation" or scenes[i].relation]
        chosen = set(able[:count])
        left = [i for i in left if i not in chosen]
        for i in chosen:
            kinds[i] = kind
    return kinds


def _alt_text(scene: Scene, kind: str, scenes: Sequence[Scene], dice: Dice) -> str:
    """Give a web image's text; noise that happens to be true of its scene is drawn again."""
    for _ in range(TRIES):
        match kind:
            case "clean":
                return alt_text(scene, dice)
            case "boilerplate":
                return boilerplate(dice)
            case "truncated":
                if cut := truncate(alt_text(scene, dice), dice):
                    return cut
            case "mismatch":
                text = alt_text(dice.pick(scenes), dice)
                if not describes(scene, text):
                    return text
            case "colour" | "shape" | "count" | "relation":
                text = alt_text(alter(scene, kind, dice), dice)
                if not judge(scene, text).get(kind, True):
                    return text
    raise ConfigError(f"world.web is {len(scenes)}: too few images to find texts wrong of others")
