"""Captioning as COCO's tool scores it: BLEU, METEOR, ROUGE-L, CIDEr and SPICE of the Karpathy split.

BLIP.md 5.2. References come as the tool has them (`coco_karpathy_test_gt.json`), or beside the names
of the images (`coco_karpathy_test.json`, `flickr30k_test.json`); captions as the tool takes them,
`[{"image_id", "caption"}]`. The whole set is scored: CIDEr weighs words by their frequency in it.
"""

import logging
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from blip.benchmarks.records import read_predictions, require_unique, storable
from blip.config import Config
from blip.data.annotations import coco_image_id
from blip.data.text_records import field, numbered
from blip.errors import DataError
from blip.evaluate.bootstrap import Floats, Statistic, mean
from blip.evaluate.captioning import score_captions, statistics, write_captions
from blip.evaluate.evaluation_set import EvaluationSet
from blip.evaluate.results import SUBMISSION, report
from blip.files import read_json, write_json
from blip.metrics import java
from blip.metrics.captions import MAX_ORDER, tokenized_captions
from blip.metrics.ids import name_some, require_one_each
from blip.tracker import Tracker

log = logging.getLogger(__name__)

TASK = "captioning"

ImageId = int | str

COCO_NAME = re.compile(r"(COCO_\w+_)?\d{12}\.")  # of 2014 and of 2017

# Beside PER_IMAGE; where Java cannot compute them there are none.
METEOR = pa.field("meteor", pa.list_(pa.float64(), java.METEOR_COUNTS))  # see `meteor_counts`
SPICE = pa.field("spice", pa.float64())


def evaluate_coco_captions(
    config: Config,
    checkpoint: Path,
    images: EvaluationSet,
    annotations: Path | None,
    out: Path,
    tracker: Tracker,
) -> None:
    """Write captions of a test set's photos and score them.

    Writes `submission.json` as COCO's tool takes it, and what `score_coco_captions` writes.

    Args:
        config: `evaluate` and the prompt of `finetune.captioning` are read.
        checkpoint: Of a model that captions.
        images: The photos, and what people wrote of them.
        annotations: What people wrote of them, if it is to be read elsewhere: see `read_references`.
        out: The folder to write into.
        tracker: Told the metrics and the speed.

    Raises:
        DataError: A photo or a file cannot be read, or the two are not of the same images.
    """
    ids = dict(zip(images.keys, image_ids(images.keys, images.source), strict=True))
    references = {ids[key]: list(own) for key, own in zip(images.keys, images.texts, strict=True)}
    if annotations:
        references = read_references(annotations)
        require_one_each(ids.values(), references, images.source, annotations)
    started = time.monotonic()
    captions = write_captions(config, checkpoint, images)
    tracker.metrics({"perf/images_per_second": len(captions) / (time.monotonic() - started)})
    written = {ids[key]: caption for key, caption in captions.items()}
    write_submission(written, out, tracker)
    _score(config, written, references, out, tracker)


def score_coco_captions(
    config: Config, predictions: Path, annotations: Path, out: Path, tracker: Tracker
) -> None:
    """Score captions that are there, times 100, as the paper's tables have them.

    Writes `metrics.json` with bootstrap intervals over images, and `per_example.parquet`: what
    `score_images` gives.

    Args:
        config: `evaluate` says how to resample.
        predictions: See `read_captions`.
        annotations: See `read_references`.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: A file breaks a rule, or the captions are not one for each image.
    """
    references = read_references(annotations)
    captions = read_captions(predictions, references, annotations)
    _score(config, captions, references, out, tracker)


def read_references(path: Path) -> dict[ImageId, list[str]]:
    """Read what people wrote of each image, by its id, in the order of the file's images.

    Args:
        path: COCO's `{"images": [{"id"}], "annotations": [{"image_id", "caption"}]}`; or a list of
            `{"image_id", "caption": [...]}`, or with `image`, a name, in place of the id: then it
            is the number in it, as COCO numbers its photos, or else the name without its folder.

    Raises:
        DataError: The file cannot be read or breaks a rule, or an image has no caption.
    """
    found = read_json(path)
    references = coco_references(found, path) if isinstance(found, dict) else _listed(path)
    if not references:
        raise DataError(f"{path}: has no caption to compare with: fetch it again")
    return references


def read_captions(path: Path, expected: Iterable[ImageId], annotations: Path) -> dict[ImageId, str]:
    """Read `[{"image_id", "caption"}]`, one for each expected image; empty captions may be.

    Raises:
        DataError: The file cannot be read or breaks a rule, or captions are missing, are surplus
            or stand twice.
    """

    def parse(row: Any, where: str) -> tuple[ImageId, str]:
        return _image_id(row, where), _caption(row, where)

    ids = list(expected)
    return dict(zip(ids, read_predictions(path, ids, annotations, parse), strict=True))


def write_submission(captions: Mapping[ImageId, str], out: Path, tracker: Tracker) -> None:
    """Write captions as COCO's tool, and the servers, take them."""
    rows = [{"image_id": image_id, "caption": text} for image_id, text in captions.items()]
    write_json(out / SUBMISSION, rows)
    tracker.artifact(out / SUBMISSION)


def image_ids(images: Iterable[str], source: Path) -> list[ImageId]:
    """Give the ids of photos by their names: COCO's numbers, or else the names without folders.

    Raises:
        DataError: Two photos have one id.
    """
    names = [PurePosixPath(image).name for image in images]
    ids: list[ImageId] = list(names)
    if all(COCO_NAME.match(name) for name in names):
        ids = [coco_image_id(name) for name in names]
    require_unique(ids, source)
    return ids


def score_images(
    captions: Mapping[ImageId, str], references: Mapping[ImageId, list[str]]
) -> pa.Table:
    """Score every image: `PER_IMAGE`, its caption, and METEOR and SPICE where Java computes them."""
    table = score_captions(
        {str(image_id): caption for image_id, caption in captions.items()},
        {str(image_id): own for image_id, own in references.items()},
    )
    table = table.append_column("caption", pa.array([captions[i] for i in references]))
    lacks = {METEOR: java.meteor_lacks(), SPICE: java.spice_lacks()}
    for why in filter(None, lacks.values()):
        log.warning("left out: %s", why)
    if all(lacks.values()):
        return table
    hypotheses, own = tokenized_captions([captions[i] for i in references], [*references.values()])
    if not lacks[METEOR]:
        counts = java.meteor_counts(hypotheses, own)
        table = table.append_column(METEOR, pa.array(counts.tolist(), METEOR.type))
    if not lacks[SPICE]:
        table = table.append_column(SPICE, pa.array(java.spice(hypotheses, own)))
    return table


def all_statistics(per_image: pa.Table) -> dict[str, Statistic]:
    """Give every metric that a table of `score_images` tells, times 100, over its images."""
    found = statistics(per_image, range(1, MAX_ORDER + 1))
    if METEOR.name in per_image.column_names:
        counts = np.array(per_image[METEOR.name].to_pylist(), dtype=np.float64)

        def meteor(draws: Floats) -> Floats:
            return 100.0 * java.meteor(draws @ counts)

        found["meteor"] = meteor
    if SPICE.name in per_image.column_names:
        found["spice"] = mean(100.0 * per_image[SPICE.name].to_numpy())
    return found


def _score(
    config: Config,
    captions: Mapping[ImageId, str],
    references: Mapping[ImageId, list[str]],
    out: Path,
    tracker: Tracker,
) -> None:
    table = score_images(captions, references)
    counts = {"images": len(table), "references": sum(map(len, references.values()))}
    report(config, TASK, table, all_statistics(table), counts, out, tracker)


def coco_references(found: Any, path: Path) -> dict[ImageId, list[str]]:
    """Give what a document in COCO's format tells, in the order of its images.

    Raises:
        DataError: It breaks a rule.
    """
    references: dict[ImageId, list[str]] = {}
    for number, image in enumerate(field(found, "images", list, str(path)), 1):
        where = f"{path}, image {number}"
        image_id = field(image, "id", int, where)
        if image_id in references:
            raise DataError(f"{where}: id {image_id} stands twice: remove one")
        references[image_id] = []
    for number, annotation in enumerate(field(found, "annotations", list, str(path)), 1):
        where = f"{path}, annotation {number}"
        image_id = field(annotation, "image_id", int, where)
        if image_id not in references:
            raise DataError(
                f"{where}: image_id {image_id} is not among the images: remove the annotation"
            )
        references[image_id].append(_caption(annotation, where))
    bare = [image_id for image_id, own in references.items() if not own]
    if bare:
        raise DataError(f"{path}: without a caption: {name_some(bare)}: remove these images")
    return references


def _listed(path: Path) -> dict[ImageId, list[str]]:
    """Read a list of images with their captions; all have ids, or all have names."""
    keys: list[ImageId] = []
    texts: list[list[str]] = []
    named = False
    for where, row in numbered(path):
        named = named or (not keys and isinstance(row, dict) and "image" in row)
        keys.append(field(row, "image", str, where) if named else _image_id(row, where))
        own = field(row, "caption", list, where)
        if not own or not all(isinstance(text, str) for text in own):
            raise DataError(
                f"{where}: caption is {own!r:.80}, it must be texts, one at least: mend or remove "
                "the record"
            )
        texts.append(own)
    ids = image_ids(map(str, keys), path) if named else keys
    require_unique(ids, path)
    return dict(zip(ids, texts, strict=True))


def _caption(row: Any, where: str) -> str:
    return storable(field(row, "caption", str, where), "caption", where)


def _image_id(row: Any, where: str) -> ImageId:
    found: Any = field(row, "image_id", (int, str), where)
    return found
