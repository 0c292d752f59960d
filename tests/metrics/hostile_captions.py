"""Captions and references that a tokenizer or a scorer may stumble over, drawn by chance."""

import random

from tests.metrics.noisy_text import WORDS, noisy_lines

ODD = [
    "",
    " ",
    "\t ",
    "\n",
    ".",
    " . . .",
    "?!",
    "''",
    "- --",
    "\u2026",
    "\u201c\u201d",
    "|||",
    "()",
]
ODD += ["\U0001f600", "\U0001f469\u200d\U0001f467 two", "e\u0301 \u0130 \u1e9e", "\u05e2\u05d1 a"]
ODD += [
    "\x00",
    "a\x07b \x1b[1m",
    "\u200b \ufeff",
    "\uff21 \u00bd \u2167",
    "A",
    "Cannot",
    "U.S.",
    "5",
]
NUM_REFERENCES = (1, 1, 2, 5, 5, 20)


def hostile_corpus(seed: int, images: int) -> tuple[list[str], list[list[str]]]:
    """Give a caption of each image, and its references."""
    chance = random.Random(seed)
    noise = noisy_lines(seed, images)
    hypotheses, references = [], []
    for _ in range(images):
        own = [_caption(chance, noise) for _ in range(chance.choice(NUM_REFERENCES))]
        hypothesis = chance.choice([*own, _caption(chance, noise)])
        kind = chance.random()
        if kind < 0.2:
            own = [own[0]] * len(own)
        elif kind < 0.5:
            hypothesis = " ".join(w for w in hypothesis.split(" ") if chance.random() < 0.8)
        elif kind < 0.7:  # as many words less as more: the closest length is a tie
            own = [_words(chance, size) for size in (10, 6, 12, 4)]
            chance.shuffle(own)
            hypothesis = _words(chance, 8)
        hypotheses.append(hypothesis)
        references.append(own)
    return hypotheses, references


def _caption(chance: random.Random, noise: list[str]) -> str:
    kind = chance.random()
    if kind < 0.4:
        return chance.choice(noise)
    if kind < 0.6:
        return chance.choice(ODD)
    (size,) = chance.choices((1, 8, 60, 500), (20, 80, 10, 1))
    text = _words(chance, size, chance.choice(("  ", "\n", " ", " ", " ")))
    return chance.choice((str, str.upper, str.title))(text) + chance.choice(("", ".", " .", ". "))


def _words(chance: random.Random, size: int, joint: str = " ") -> str:
    return joint.join(chance.choices(WORDS, k=size))
