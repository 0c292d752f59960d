"""Flickr8k: does a model's score of a caption agree with what people said of it?

Experts rated a caption of a photo from 1 to 4, three of them; a crowd said yes or no. As in the
literature, each expert's rating is compared on its own, so that a score stands three times, and
captions that describe the photo in the dataset are left out; of the crowd, the share of yes is
compared, and nothing is left out. What is published is tau-c for experts and tau-b for the crowd.

Sources: Hodosh et al. 2013; Anderson et al. 2016, Hessel et al. 2021 (appendix A) on the handling.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from blip.benchmarks.matching import match_captions
from blip.benchmarks.records import photo, score, text
from blip.config import Config
from blip.data.text_records import field, numbered, read_lines, require
from blip.errors import DataError
from blip.evaluate.bootstrap import Floats, Statistic
from blip.evaluate.evaluation_set import Photos, require_photos
from blip.evaluate.results import report
from blip.metrics.agreement import kendall_tau_b, kendall_tau_c, spearman
from blip.metrics.ids import require_one_each
from blip.tracker import Tracker

Judges = Literal["expert", "crowd"]

COLUMNS: Mapping[Judges, tuple[str, ...]] = {  # of the official files, which have no header
    "expert": ("image", "caption_id", "expert1", "expert2", "expert3"),
    "crowd": ("image", "caption_id", "pct_yes", "n_yes", "n_no"),
}
SHARE = 1e-5  # that a share of yes may be off by rounding

CORRELATIONS = {"tau_b": kendall_tau_b, "tau_c": kendall_tau_c, "spearman": spearman}


@dataclass(frozen=True)
class Judgment:
    """What people said of a caption of a photo.

    Attributes:
        image: The photo's name.
        caption_id: `image#number`, of the photo that it was written for.
        ratings: Of three experts, 1 to 4; or the share of yes.
        own: Whether the dataset has this caption of this very photo.
    """

    image: str
    caption_id: str
    caption: str
    ratings: tuple[float, ...]
    own: bool

    @property
    def key(self) -> tuple[str, str]:
        """What it is found by."""
        return self.image, self.caption_id


def read_judgments(data: Path, judges: Judges, annotations: Path | None = None) -> list[Judgment]:
    """Read ratings: `ExpertAnnotations.txt`, `CrowdFlowerAnnotations.txt`, or the like with a header.

    Args:
        data: Lines of tab-separated fields. A header may name them, and a `caption` among them.
        judges: Who judged.
        annotations: `Flickr8k.token.txt`, the captions of all photos; needed where `data` holds
            none. With it, a caption that was written for another photo but reads like one of this
            is known to be its own.

    Raises:
        DataError: A file is unreadable or breaks a rule, or a pair stands twice.
    """
    captions = read_captions(annotations) if annotations else {}
    own: dict[str, set[str]] = {}
    for caption_id, caption in captions.items():
        own.setdefault(caption_id.rpartition("#")[0], set()).add(caption)
    judgments = []
    for where, row in _rows(data, judges):
        image, caption_id = photo(row["image"], where), row["caption_id"]
        caption = row.get("caption") or captions.get(caption_id, "")
        rule = "that of a caption in the file that --annotations names"
        require(caption, where, "caption_id", caption_id, rule)
        is_own = caption_id.rpartition("#")[0] == image or caption in own.get(image, ())
        ratings = _ratings(row, judges, where)
        judgments.append(
            Judgment(image, caption_id, text(caption, "caption", where), ratings, is_own)
        )
    if not judgments:
        raise DataError(f"{data}: holds no judgment: fetch it again")
    keys = [judgment.key for judgment in judgments]
    require_one_each(keys, keys, data, data)
    return judgments


def read_captions(path: Path) -> dict[str, str]:
    """Read `Flickr8k.token.txt`: lines of `image#number`, a tab, a caption.

    Raises:
        DataError: The file is unreadable or breaks a rule.
    """
    captions = {}
    for number, line in read_lines(path):
        caption_id, tab, caption = line.partition("\t")
        rule = "image#number, a tab, and a caption"
        require(tab and "#" in caption_id, f"{path}, line {number}", "line", line, rule)
        captions[caption_id] = caption.strip()
    return captions


def evaluate_judgments(
    config: Config,
    checkpoint: Path,
    data: Path,
    judges: Judges,
    annotations: Path | None,
    photos: Path,
    out: Path,
    tracker: Tracker,
) -> None:
    """Measure a model: rank correlations (x 100) of its ITM and ITC scores with the ratings.

    Args:
        config: `evaluate`, and the text limits of `finetune.retrieval`, are read.
        checkpoint: Of a model that matches.
        data: See `read_judgments`.
        judges: See `read_judgments`.
        annotations: See `read_judgments`.
        photos: The folder of the photos.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: A file breaks a rule, or a photo is missing or damaged.
    """
    judgments = _counted(read_judgments(data, judges, annotations), judges)
    judgments = sorted(judgments, key=lambda judgment: judgment.image)
    names, owner = np.unique([judgment.image for judgment in judgments], return_inverse=True)
    paths = [photos / str(name) for name in names]
    require_photos(paths)
    captions, rows = np.unique([judgment.caption for judgment in judgments], return_inverse=True)
    found = match_captions(config, checkpoint, Photos(paths), captions.tolist(), rows, owner)
    _report(config, judges, judgments, {"itm": found.itm, "itc": found.itc}, out, tracker)


def score_judgments(
    config: Config,
    predictions: Path,
    data: Path,
    judges: Judges,
    annotations: Path | None,
    out: Path,
    tracker: Tracker,
) -> None:
    """Score what another model gave: a JSON list of `image`, `caption_id`, `score`.

    There must be one for every pair of the file, also for those that are left out.

    Raises:
        DataError: A file breaks a rule, a score is not a number, or predictions are missing,
            surplus, or stand twice.
    """
    judgments = read_judgments(data, judges, annotations)
    keys, values = [], []
    for where, item in numbered(predictions):
        keys.append((field(item, "image", str, where), field(item, "caption_id", str, where)))
        values.append(score(item, "score", where))
    require_one_each(keys, [judgment.key for judgment in judgments], predictions, data)
    given = dict(zip(keys, values, strict=True))
    judgments = _counted(judgments, judges)
    scores = {"predicted": np.array([given[judgment.key] for judgment in judgments])}
    _report(config, judges, judgments, scores, out, tracker)


def _counted(judgments: Sequence[Judgment], judges: Judges) -> list[Judgment]:
    """Leave out what does not count.

    Raises:
        DataError: Nothing is left.
    """
    counted = [judgment for judgment in judgments if judges == "crowd" or not judgment.own]
    if not counted:
        raise DataError(
            "all captions are those of the photos themselves, which do not count among experts: "
            "give the whole file of judgments"
        )
    return counted


def _report(
    config: Config,
    judges: Judges,
    judgments: Sequence[Judgment],
    scores: Mapping[str, NDArray[np.float64]],
    out: Path,
    tracker: Tracker,
) -> None:
    each = [len(judgment.ratings) for judgment in judgments]
    ratings = np.array([rating for judgment in judgments for rating in judgment.ratings])
    rows = np.repeat(np.arange(len(judgments)), each)
    statistics: dict[str, Statistic] = {}
    for name, values in scores.items():
        for kind, correlation in CORRELATIONS.items():
            agreement = partial(correlation, values[rows], ratings)
            statistics[f"{name}_{kind}"] = _percent(agreement, rows)
    columns: dict[str, Any] = {
        "image": [judgment.image for judgment in judgments],
        "caption_id": [judgment.caption_id for judgment in judgments],
        "ratings": [list(judgment.ratings) for judgment in judgments],
        **scores,
    }
    images = len({judgment.image for judgment in judgments})
    counts = {"pairs": len(judgments), "ratings": len(ratings), "images": images}
    table = pa.table(columns)
    report(config, f"judgments_{judges}", table, statistics, counts, out, tracker)


def _percent(agreement: Any, rows: NDArray[np.int64]) -> Statistic:
    def statistic(draws: Floats) -> Floats:
        found: Floats = 100.0 * agreement(draws[:, rows])
        return found

    return statistic


def _rows(data: Path, judges: Judges) -> Iterator[tuple[str, dict[str, str]]]:
    """Give the lines of a file as fields by name, and how errors name them."""
    names: Sequence[str] = COLUMNS[judges]
    for number, line in read_lines(data):
        fields = line.split("\t")
        where = f"{data}, line {number}"
        if number == 1 and fields[:2] == ["image", "caption_id"]:
            names = fields
            missing = [name for name in COLUMNS[judges] if name not in names]
            require(not missing, where, "header", line, f"that of {judges} judgments, {missing}")
            continue
        require(len(fields) == len(names), where, "line", line, f"of {len(names)} fields")
        yield where, dict(zip(names, fields, strict=True))


def _ratings(row: Mapping[str, str], judges: Judges, where: str) -> tuple[float, ...]:
    """Give three ratings, or the share of yes."""
    texts = [row[name] for name in COLUMNS[judges][2:]]
    if judges == "expert":
        require(set(texts) <= set("1234"), where, "experts", texts, "three ratings from 1 to 4")
        return tuple(map(float, texts))
    try:
        share, yes, no = float(texts[0]), int(texts[1]), int(texts[2])
        agree = yes + no > 0 and abs(share - yes / (yes + no)) < SHARE
    except ValueError:
        agree = False
    require(agree, where, "votes", texts, "the share of yes, and how many said yes and no")
    return (share,)
