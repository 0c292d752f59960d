"""SugarCrepe: does a model prefer the caption of a photo to one that is wrong in a single detail?

A pair is right where the caption scores above the negative; an equal score is wrong. The score is
the log-odds of the matching head (ITM) or the cosine (ITC).

Source: Hsieh et al. 2023; `main_eval.py` of RAIVNLab/sugar-crepe, commit 0047054.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from blip.benchmarks.matching import match_captions
from blip.benchmarks.records import photo, score, text
from blip.config import Config
from blip.data.text_records import field, numbered, require
from blip.errors import DataError
from blip.evaluate.bootstrap import Statistic, mean, mean_of
from blip.evaluate.evaluation_set import Photos, require_photos
from blip.evaluate.results import report
from blip.files import read_json
from blip.metrics.ids import require_one_each
from blip.tracker import Tracker

Floats = NDArray[np.float64]

TASK = "sugarcrepe"

Scores = Mapping[str, tuple[Floats, Floats]]
"""By what scored them: scores of the captions, and of the negatives."""


@dataclass(frozen=True)
class Contrast:
    """A caption of a photo, and a negative.

    Attributes:
        category: How the negative was made, e.g. `replace_obj`.
        number: Within its category.
        image: The photo's name.
    """

    category: str
    number: str
    image: str
    caption: str
    negative: str

    @property
    def key(self) -> tuple[str, str]:
        """What it is found by."""
        return self.category, self.number


def read_contrasts(data: Path) -> list[Contrast]:
    """Read the official files (a folder of them, or one), or a list of pairs of several categories.

    An official file is named by its category and holds an object of
    `number: {"filename", "caption", "negative_caption"}`; in a list, the records have `category` and
    `id` too.

    Raises:
        DataError: A file is unreadable or breaks a rule, or a pair stands twice.
    """
    files = sorted(data.glob("*.json")) if data.is_dir() else [data]
    contrasts = [_parse(*record) for file in files for record in _records(file)]
    if not contrasts:
        raise DataError(f"{data}: holds no pair of captions: name the folder of the *.json files")
    keys = [contrast.key for contrast in contrasts]
    require_one_each(keys, keys, data, data)
    return contrasts


def evaluate_sugarcrepe(
    config: Config, checkpoint: Path, data: Path, photos: Path, out: Path, tracker: Tracker
) -> None:
    """Measure a model: accuracy of each category and their mean, by ITM and by ITC, in percent.

    Args:
        config: `evaluate`, and the text limits of `finetune.retrieval`, are read.
        checkpoint: Of a model that matches.
        data: See `read_contrasts`.
        photos: The folder of COCO's val2017.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: A file breaks a rule, or a photo is missing or damaged.
    """
    contrasts = read_contrasts(data)
    names = sorted({contrast.image for contrast in contrasts})
    paths = [photos / name for name in names]
    require_photos(paths)
    place = {name: number for number, name in enumerate(names)}
    order = sorted(range(len(contrasts)), key=lambda i: place[contrasts[i].image])
    sorted_ = [contrasts[i] for i in order]
    captions = [side for contrast in sorted_ for side in (contrast.caption, contrast.negative)]
    owner = np.repeat([place[contrast.image] for contrast in sorted_], 2)
    rows = np.arange(len(captions))
    found = match_captions(config, checkpoint, Photos(paths), captions, rows, owner)
    scores = {"itm": (found.itm[::2], found.itm[1::2]), "itc": (found.itc[::2], found.itc[1::2])}
    _report(config, sorted_, scores, out, tracker)


def score_sugarcrepe(
    config: Config, predictions: Path, data: Path, out: Path, tracker: Tracker
) -> None:
    """Score what another model gave: a JSON list of `category`, `id`, `positive`, `negative`.

    Raises:
        DataError: A file breaks a rule, a score is not a number, or predictions are missing,
            surplus, or stand twice.
    """
    contrasts = read_contrasts(data)
    keys, values = [], []
    for where, item in numbered(predictions):
        keys.append(
            (field(item, "category", str, where), str(field(item, "id", (int, str), where)))
        )
        values.append((score(item, "positive", where), score(item, "negative", where)))
    require_one_each(keys, [contrast.key for contrast in contrasts], predictions, data)
    given = dict(zip(keys, values, strict=True))
    pairs = np.array([given[contrast.key] for contrast in contrasts])
    _report(config, contrasts, {"predicted": (pairs[:, 0], pairs[:, 1])}, out, tracker)


def _report(
    config: Config, contrasts: Sequence[Contrast], scores: Scores, out: Path, tracker: Tracker
) -> None:
    categories = np.array([contrast.category for contrast in contrasts])
    columns: dict[str, Any] = {
        "category": categories.tolist(),
        "id": [contrast.number for contrast in contrasts],
        "image": [contrast.image for contrast in contrasts],
    }
    statistics: dict[str, Statistic] = {}
    for name, (caption, negative) in scores.items():
        columns |= {f"{name}_positive": caption, f"{name}_negative": negative}
        right = 100.0 * (caption > negative)
        each = {c: mean(right * (categories == c), categories == c) for c in np.unique(categories)}
        statistics |= {f"{name}_{category}": value for category, value in each.items()}
        statistics[f"{name}_mean"] = mean_of(list(each.values()))
    counts = {"pairs": len(contrasts)}
    report(config, TASK, pa.table(columns), statistics, counts, out, tracker)


def _records(file: Path) -> Iterator[tuple[str, str, str, Any]]:
    """Give place, category, number and content of the records of a file."""
    document = read_json(file)
    if isinstance(document, list):
        for number, item in enumerate(document, 1):
            where = f"{file}, record {number}"
            name = str(field(item, "id", (int, str), where))
            yield where, field(item, "category", str, where), name, item
        return
    require(isinstance(document, dict), f"{file}", "content", document, "an object or a list")
    for name, item in document.items():
        yield f"{file}, record {name!r}", file.stem, name, item


def _parse(where: str, category: str, number: str, item: Any) -> Contrast:
    return Contrast(
        category=category,
        number=number,
        image=photo(field(item, "filename", str, where), where),
        caption=text(field(item, "caption", str, where), "caption", where),
        negative=text(field(item, "negative_caption", str, where), "negative_caption", where),
    )
