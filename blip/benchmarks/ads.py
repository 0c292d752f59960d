"""CommercialAdsDataset: does the photo of an ad match what somebody searched for?

The score of a pair is the match of the query, as a text, with the photo of the ad; the measure is
the area under the ROC over all labelled pairs. How the published figure was made (zero-shot or
tuned, with or without the ad's own texts) is not said anywhere; this is the zero-shot reading of
"image-text matching".

Source: Yang et al. 2022 (AdsCVLR); the columns are those that public notebooks show of the files
of microsoft/CommercialAdsDataset, which have no header.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from blip.benchmarks.matching import match_captions
from blip.benchmarks.records import score, text
from blip.config import Config
from blip.data.images import decode_image
from blip.data.tasks import MAX_PIXELS
from blip.data.text_records import field, numbered, read_lines, require
from blip.errors import DataError
from blip.evaluate.bootstrap import Floats, Statistic
from blip.evaluate.evaluation_set import stack
from blip.evaluate.results import report
from blip.metrics.agreement import roc_auc
from blip.metrics.ids import name_some, require_one_each
from blip.tracker import Tracker

TASK = "ads"

# Columns of the tab-separated files, from 0. Beside these: 1 another number, 3 title, 4
# description, 5 site, 6 seller, 7 brand, 9 a token of the category.
IMAGE, QUERY, LABEL = 0, 2, 8
NUM_COLUMNS = 10


@dataclass(frozen=True)
class Ad:
    """A query and an ad.

    Attributes:
        row: Its line in the file, from 1.
        image: The id of the ad's photo.
        query: As written.
        relevant: Whether the ad is what was searched for.
    """

    row: int
    image: str
    query: str
    relevant: bool


def read_ads(path: Path, label_column: int = LABEL) -> list[Ad]:
    """Read pairs: `test_50k.tsv` or the like, tab-separated, without header and quoting.

    Args:
        path: The file.
        label_column: Which column, from 0, says 1 for a relevant ad and 0 for another.

    Raises:
        DataError: The file is unreadable or breaks a rule, or all labels are alike.
    """
    ads = []
    for row, line in read_lines(path):
        where, fields = f"{path}, line {row}", line.split("\t")
        require(len(fields) == NUM_COLUMNS, where, "line", line, f"of {NUM_COLUMNS} fields")
        rule = f"0 or 1 (column {label_column}, from 0): name another by --label-column"
        require(0 <= label_column < NUM_COLUMNS, where, "label", label_column, "a column's number")
        label = fields[label_column]
        require(label in ("0", "1"), where, "label", label, rule)
        query = text(fields[QUERY], "query", where)
        ads.append(Ad(row, text(fields[IMAGE], "image", where), query, label == "1"))
    if len({ad.relevant for ad in ads}) != 2:
        raise DataError(
            f"{path}: has no pair with one of the labels 0 and 1: a curve needs both; check the "
            "file and --label-column"
        )
    return ads


class EncodedImages:
    """The photos of the ads: lines of id, a tab, and the file in base64 (`image_base64.tsv`).

    The file, of gigabytes, is read through once, for the places of the wanted lines; of an id that
    stands twice the first counts.

    Attributes:
        names: The ids that were wanted and found, sorted: the order of the images.

    Raises:
        DataError: It is unreadable or breaks a rule.
    """

    def __init__(self, path: Path, wanted: Iterable[str]) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        names, place = set(wanted), 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    name, tab, content = line.partition(b"\t")
                    require(
                        tab, f"{path}, line {number}", "line", line[:40], "an id, a tab, a photo"
                    )
                    key = name.decode("utf-8", "replace")
                    if key in names and key not in self._places:
                        self._places[key] = place + len(name) + 1, len(content)
                    place += len(line)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        self.names = sorted(self._places)

    def __len__(self) -> int:
        return len(self.names)

    def digests(self, rows: range) -> list[str]:
        """See `Photos.digests`."""
        names = self.names[rows.start : rows.stop]
        return [hashlib.sha256(self._content(name)).hexdigest() for name in names]

    def pixels(self, rows: range, size: int) -> Tensor:
        """See `Photos.pixels`."""
        return stack([self.read(name) for name in self.names[rows.start : rows.stop]], size)

    def read(self, name: str) -> Tensor:
        """Decode a photo: (3, H, W) uint8.

        Raises:
            DataError: It is damaged.
        """
        try:
            return decode_image(self._content(name), MAX_PIXELS)
        except DataError as error:
            raise self._damaged(name, error) from None

    def _content(self, name: str) -> bytes:
        start, size = self._places[name]
        with self._path.open("rb") as file:
            file.seek(start)
            content = file.read(size).rstrip(b"\r\n")
        try:
            return base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, error: Exception) -> DataError:
        return DataError(f"{self._path}: photo {name}: {error}: fetch the file again")


def evaluate_ads(
    config: Config,
    checkpoint: Path,
    data: Path,
    photos: Path,
    label_column: int,
    skip_missing: bool,
    out: Path,
    tracker: Tracker,
) -> None:
    """Measure a model: the area under the ROC by ITM, and by ITC, in percent.

    Args:
        config: `evaluate`, and the text limits of `finetune.retrieval`, are read.
        checkpoint: Of a model that matches.
        data: See `read_ads`.
        photos: `image_base64.tsv`.
        label_column: See `read_ads`.
        skip_missing: Leave out pairs whose photo is not in the file, and report how many.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: A file breaks a rule, or a photo is missing or damaged.
    """
    ads = read_ads(data, label_column)
    images = EncodedImages(photos, (ad.image for ad in ads))
    place = {name: number for number, name in enumerate(images.names)}
    missing = [ad.row for ad in ads if ad.image not in place]
    if missing and (not skip_missing or len(missing) == len(ads)):
        raise DataError(
            f"{photos}: lacks the photos of lines {name_some(missing)} of {data}: fetch the whole "
            "file, or leave these pairs out, which is reported, by --skip-missing"
        )
    ads = sorted((ad for ad in ads if ad.image in place), key=lambda ad: ad.image)
    queries, rows = np.unique([ad.query for ad in ads], return_inverse=True)
    owner = np.array([place[ad.image] for ad in ads])
    found = match_captions(config, checkpoint, images, queries.tolist(), rows, owner)
    scores = {"itm": found.itm, "itc": found.itc}
    _report(config, ads, scores, len(missing), out, tracker)


def score_ads(
    config: Config, predictions: Path, data: Path, label_column: int, out: Path, tracker: Tracker
) -> None:
    """Score what another model gave: a JSON list of `row`, the pair's line from 1, and `score`.

    Raises:
        DataError: A file breaks a rule, a score is not a number, or predictions are missing,
            surplus, or stand twice.
    """
    ads = read_ads(data, label_column)
    given: dict[int, float] = {}
    rows = []
    for where, item in numbered(predictions):
        rows.append(field(item, "row", int, where))
        given[rows[-1]] = score(item, "score", where)
    require_one_each(rows, [ad.row for ad in ads], predictions, data)
    scores = {"predicted": np.array([given[ad.row] for ad in ads])}
    _report(config, ads, scores, 0, out, tracker)


def _report(
    config: Config,
    ads: Sequence[Ad],
    scores: dict[str, NDArray[np.float64]],
    skipped: int,
    out: Path,
    tracker: Tracker,
) -> None:
    labels = np.array([ad.relevant for ad in ads])
    columns = {
        "row": [ad.row for ad in ads],
        "image": [ad.image for ad in ads],
        "relevant": labels,
        **scores,
    }
    statistics = {f"{name}_roc_auc": _area(labels, values) for name, values in scores.items()}
    counts = {"pairs": len(ads), "relevant": int(labels.sum()), "skipped": skipped}
    report(config, TASK, pa.table(columns), statistics, counts, out, tracker)


def _area(labels: NDArray[np.bool_], values: NDArray[np.float64]) -> Statistic:
    def statistic(draws: Floats) -> Floats:
        percent: Floats = 100.0 * roc_auc(labels, values, draws)
        return percent

    return statistic
