"""What is expected of a dataset version before anything trains on it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blip.config import Validate

# Great Expectations' classes: four that judge rows, and three that judge a number of the whole.
PRESENT = "ExpectColumnValuesToNotBeNull"
UNIQUE = "ExpectColumnValuesToBeUnique"
BETWEEN = "ExpectColumnValuesToBeBetween"
LENGTHS = "ExpectColumnValueLengthsToBeBetween"
AMONG = "ExpectColumnValuesToBeInSet"
COUNT = "ExpectTableRowCountToBeBetween"
DISTINCT = "ExpectColumnProportionOfUniqueValuesToBeBetween"
MEAN = "ExpectColumnMeanToBeBetween"

ORIGINS = ["web", "human", "synthetic"]


@dataclass(frozen=True)
class Subject:
    """A dataset version to check, and the accepted one that its drift is measured from."""

    id: int  # in the catalogue
    name: str
    path: Path
    digest: str
    images: int
    captions: int
    mean_characters: float  # of its texts
    previous: "Subject | None"


@dataclass(frozen=True)
class Rule:
    """One expectation on the texts or the images of a version.

    Attributes:
        name: What it is called in results and errors.
        says: What must be true, in words.
        table: The rows that it speaks of.
        expectation: Great Expectations' class.
        arguments: For the class; None where there is nothing to compare with, and the rule holds.
    """

    name: str
    says: str
    table: Literal["texts", "images"]
    expectation: str
    arguments: dict[str, Any] | None

    @property
    def limit(self) -> str:
        """What may be observed, in words."""
        if self.arguments is None:
            return "none: no earlier accepted version"
        if self.expectation not in (COUNT, DISTINCT, MEAN):
            return "no failing row"
        least, most = self.arguments["min_value"], self.arguments.get("max_value")
        return f"at least {number(least)}" if most is None else f"{number(least)} to {number(most)}"


def rules_of(config: Validate, subject: Subject) -> list[Rule]:
    """Give everything that is expected of a version, in the order in which it is reported."""
    width, height = _range("width", config.image_side), _range("height", config.image_side)
    captions = _range("captions", config.captions_per_image)
    characters = _range("text", config.caption_characters)
    origins = {"column": "origin", "value_set": ORIGINS}
    share = config.max_duplicate_captions
    distinct = {"column": "text", "min_value": round(1.0 - share, 6)}
    side, some = _words(config.image_side), {"min_value": 1}
    return [
        Rule("images_exist", "there are images", "images", COUNT, some),
        Rule("image_unique", "no image stands twice", "images", UNIQUE, {"column": "key"}),
        Rule("image_width", f"images are {side} pixels wide", "images", BETWEEN, width),
        Rule("image_height", f"images are {side} pixels high", "images", BETWEEN, height),
        Rule(
            "captions_per_image",
            f"an image has {_words(config.captions_per_image)} texts",
            "images",
            BETWEEN,
            captions,
        ),
        Rule("texts_exist", "there are texts", "texts", COUNT, some),
        Rule("text_present", "no text is blank", "texts", PRESENT, {"column": "text"}),
        Rule("key_present", "a text names its image", "texts", PRESENT, {"column": "key"}),
        Rule(
            "image_present", "the image of a text is there", "texts", PRESENT, {"column": "image"}
        ),
        Rule("caption_unique", "no text stands twice", "texts", UNIQUE, {"column": "id"}),
        Rule(
            "caption_characters",
            f"a text has {_words(config.caption_characters)} characters",
            "texts",
            LENGTHS,
            characters,
        ),
        Rule("origin_known", f"a text is {', '.join(ORIGINS)}", "texts", AMONG, origins),
        Rule(
            "duplicate_captions",
            f"the share of distinct texts: at most {share:g} repeat another",
            "texts",
            DISTINCT,
            distinct,
        ),
        *_drift_rules(config, subject.previous),
    ]


def _drift_rules(config: Validate, previous: Subject | None) -> list[Rule]:
    count, length = config.max_count_drift, config.max_length_drift
    images = texts = characters = None
    if previous:
        images = _whole(_around(previous.images, count))
        texts = _whole(_around(previous.captions, count))
        characters = {"column": "characters", **_around(previous.mean_characters, length)}
    says = "as many {} as before, within {:.0%}"
    return [
        Rule("image_drift", says.format("images", count), "images", COUNT, images),
        Rule("text_drift", says.format("texts", count), "texts", COUNT, texts),
        Rule(
            "length_drift",
            f"texts as long as before on average, within {length:.0%}",
            "texts",
            MEAN,
            characters,
        ),
    ]


def _range(column: str, limits: tuple[int, int]) -> dict[str, Any]:
    return {"column": column, "min_value": limits[0], "max_value": limits[1]}


def _words(limits: tuple[int, int]) -> str:
    return f"{limits[0]:,} to {limits[1]:,}"


def _around(value: float, share: float) -> dict[str, float]:
    low, high = round(value * (1.0 - share), 6), round(value * (1.0 + share), 6)
    return {"min_value": low, "max_value": high}


def _whole(limits: dict[str, float]) -> dict[str, float]:
    return {
        "min_value": math.ceil(limits["min_value"]),
        "max_value": math.floor(limits["max_value"]),
    }


def number(value: float) -> str:
    """Give a number as a person reads it: no exponent, no trailing zeros."""
    return f"{value:,.6f}".rstrip("0").rstrip(".")
