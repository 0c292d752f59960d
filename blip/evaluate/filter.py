"""What the filter lets through: its verdicts on web texts against the truth, and on synthetic ones.

The truth is known for the demo world, and wherever somebody labelled texts (`blip.data.truth`).
Where it holds drawn scenes, synthetic captions are judged too: true if all they state is so.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
from numpy.typing import NDArray

from blip.config import Config
from blip.data.dataset import Dataset, open_dataset
from blip.data.statements import describes
from blip.data.truth import Truth, read_truth
from blip.errors import DataError
from blip.evaluate.bootstrap import Statistic, area_under_curve, intervals, mean, plain
from blip.files import atomic_file, write_json
from blip.tracker import Tracker

log = logging.getLogger(__name__)

CLEAN = "clean"

_BINS = 50


@dataclass(frozen=True)
class ScoredTexts:
    """The M judged texts of a dataset version.

    Attributes:
        num_images: N.
        image: (M) whose each text is, below N.
        source: (N) names of the images where they came from.
        text: (M).
        origin: (M) web, human or synthetic.
        score: (M) match probabilities.
    """

    num_images: int
    image: NDArray[np.int64]
    source: list[str]
    text: list[str]
    origin: NDArray[np.str_]
    score: NDArray[np.float64]


def evaluate_filter(config: Config, data: Path, out: Path, tracker: Tracker) -> None:
    """Measure the filter on a scored dataset version.

    Writes `metrics.json`: the share of synthetic captions rejected (`noise_ratio`, Li et al. 2022,
    table 2); and with a truth precision and recall of keeping clean web texts at the threshold, the
    area under the ROC curve, share kept and area against clean by kind of noise, and the share of
    synthetic captions that are true before and after the filter; each with its bootstrap interval
    over images. Writes `thresholds.csv` (what another threshold would give) and `histogram.csv`
    (texts by match probability).

    Args:
        config: `evaluate` and `capfilt.threshold` are read.
        data: A dataset version that `score` or `select` wrote.
        out: The folder to write into.
        tracker: Told the main metrics.

    Raises:
        DataError: A text has no score, or the truth is malformed or speaks of other texts.
    """
    texts = _read_scored(open_dataset(data))
    truth, kinds, threshold = [], None, config.capfilt.threshold
    if config.evaluate.truth is not None:
        truth = read_truth(Path(config.evaluate.truth))
        kinds = _kinds(texts, truth, config.evaluate.truth)
    found = intervals(
        _shares(texts, kinds, threshold)
        | _areas(texts, kinds)
        | _truth_of_synthetic(texts, truth, threshold),
        texts.num_images,
        config.evaluate.bootstrap_samples,
        config.evaluate.confidence,
        config.seed,
    )
    document: dict[str, Any] = {"web_texts": 0, "synthetic_texts": 0}
    for origin, count in zip(*np.unique(texts.origin, return_counts=True), strict=True):
        document[f"{origin}_texts"] = int(count)
    for name, interval in found.items():
        *parents, leaf = name.split("/")  # kinds/mismatch/kept
        node = document
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = plain(interval)
    if kinds is not None:
        for kind in document["kinds"]:
            document["kinds"][kind]["texts"] = int((kinds == kind).sum())
    write_json(out / "metrics.json", {"filter": document})
    _write_csv(out / "thresholds.csv", _thresholds(texts, kinds))
    _write_csv(out / "histogram.csv", _histogram(texts, kinds))
    tracker.metrics({f"filter/{name}": interval.value for name, interval in found.items()})


def _shares(
    texts: ScoredTexts, kinds: NDArray[np.str_] | None, threshold: float
) -> dict[str, Statistic]:
    """Give what a threshold does, as statistics; `kinds` (M) is empty where not known."""
    kept, web = texts.score > threshold, texts.origin == "web"
    synthetic = texts.origin == "synthetic"
    found = {"web_kept": _share(texts, kept & web, web)}
    if synthetic.any():
        found["noise_ratio"] = _share(texts, ~kept & synthetic, synthetic)
    if kinds is None:
        return found
    clean, noisy = kinds == CLEAN, (kinds != CLEAN) & (kinds != "")
    found["precision"] = _share(texts, kept & clean, kept & (clean | noisy))
    found["recall"] = _share(texts, kept & clean, clean)
    for kind in sorted(set(kinds.tolist()) - {""}):
        found[f"kinds/{kind}/kept"] = _share(texts, kept & (kinds == kind), kinds == kind)
    return found


def _areas(texts: ScoredTexts, kinds: NDArray[np.str_] | None) -> dict[str, Statistic]:
    """Give how well the scores part clean texts from noisy ones, of all kinds and of each."""
    if kinds is None:
        return {}
    clean, noisy = kinds == CLEAN, (kinds != CLEAN) & (kinds != "")
    found = {"auc": area_under_curve(clean, noisy, texts.score, texts.image)}
    for kind in sorted(set(kinds[noisy].tolist())):
        area = area_under_curve(clean, kinds == kind, texts.score, texts.image)
        found[f"kinds/{kind}/auc"] = area
    return found


def _truth_of_synthetic(
    texts: ScoredTexts, truth: list[Truth], threshold: float
) -> dict[str, Statistic]:
    """Give the share of synthetic captions that are true of their scene, before and after."""
    scenes = {known.source: known.scene for known in truth if known.scene}
    known = np.array([texts.source[image] in scenes for image in texts.image], dtype=bool)
    judged = known & (texts.origin == "synthetic")
    if not judged.any():
        return {}
    true = np.zeros(len(judged), dtype=bool)
    for i in np.flatnonzero(judged):
        true[i] = describes(scenes[texts.source[texts.image[i]]], texts.text[i])
    kept = judged & (texts.score > threshold)
    return {
        "synthetic_true": _share(texts, true, judged),
        "synthetic_true_kept": _share(texts, true & kept, kept),
    }


def _share(texts: ScoredTexts, part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> Statistic:
    """Give the statistic `share of the texts of whole that are in part`."""
    return mean(
        np.bincount(texts.image, part, texts.num_images),
        np.bincount(texts.image, whole, texts.num_images),
    )


def _thresholds(
    texts: ScoredTexts, kinds: NDArray[np.str_] | None
) -> dict[str, list[float | None]]:
    """Give what each threshold would do: shares kept, and with a truth precision and recall."""
    rows: dict[str, list[float | None]] = {"threshold": []}
    for threshold in np.linspace(0, 1, 101).round(2).tolist():
        rows["threshold"].append(threshold)
        for name, statistic in _shares(texts, kinds, threshold).items():
            if "/" not in name:
                value = float(statistic(np.ones((1, texts.num_images)))[0])
                rows.setdefault(name, []).append(value if np.isfinite(value) else None)
    return rows


def _histogram(texts: ScoredTexts, kinds: NDArray[np.str_] | None) -> dict[str, list[float]]:
    """Count texts by match probability: web ones (by truth where known) and synthetic ones."""
    groups = {"synthetic": texts.origin == "synthetic"}
    if kinds is None:
        groups["web"] = texts.origin == "web"
    else:
        groups["clean"], groups["noisy"] = kinds == CLEAN, (kinds != CLEAN) & (kinds != "")
    edges = np.linspace(0, 1, _BINS + 1)
    columns = {"low": edges[:-1].round(4).tolist(), "high": edges[1:].round(4).tolist()}
    for name, group in groups.items():
        columns[name] = np.histogram(texts.score[group], edges)[0].tolist()
    return columns


def _read_scored(dataset: Dataset) -> ScoredTexts:
    records, rows = dataset.records(), dataset.captions()
    if rows["itm_score"].null_count or not len(rows):
        raise DataError(
            f"{dataset.path}: {rows['itm_score'].null_count} of {len(rows)} texts have no match "
            "probability: give a version that `blip score` wrote"
        )
    number = {key: i for i, key in enumerate(records["key"].to_pylist())}
    return ScoredTexts(
        num_images=len(records),
        image=np.array([number[key] for key in rows["key"].to_pylist()], dtype=np.int64),
        source=records["source"].to_pylist(),
        text=rows["text"].to_pylist(),
        origin=np.array(rows["origin"].to_pylist()),
        score=rows["itm_score"].to_numpy().astype(np.float64),
    )


def _kinds(texts: ScoredTexts, truth: list[Truth], path: str) -> NDArray[np.str_]:
    """Give the kind of every web text, by its image's source and its words; empty for others."""
    kind_of = {(known.source, known.text.strip()): known.kind for known in truth}
    sources = [texts.source[image] for image in texts.image]
    kinds = np.array(
        [
            kind_of.get((source, text.strip()), "") if origin == "web" else ""
            for source, text, origin in zip(sources, texts.text, texts.origin, strict=True)
        ]
    )
    web, known = int((texts.origin == "web").sum()), int((kinds != "").sum())
    if not known:
        raise DataError(
            f"{path}: says nothing about any of the {web} web texts: it belongs to other data; "
            "set evaluate.truth to theirs, or to null"
        )
    if known < web:
        log.warning("%s: says nothing about %d of %d web texts", path, web - known, web)
    return kinds


def _write_csv(path: Path, columns: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        csv.write_csv(pa.table(columns), file)
