"""NoCaps: captions of photos with objects that COCO has no captions of, by domain.

BLIP.md 5.2. The server takes `submission.json`; where people's captions and the domains of the photos
are told (`nocaps_val_4500_captions.json`), they are scored here. A photo's score is the same in its
domain and in the entire set, whose words CIDEr counts: the paper's rows are means of one another
so, and would not be if each domain were a set of its own.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from blip.benchmarks.coco_captions import (
    ImageId,
    all_statistics,
    coco_references,
    read_captions,
    score_images,
    write_submission,
)
from blip.benchmarks.records import require_unique
from blip.config import Config
from blip.data.annotations import NocapsImage, read_nocaps
from blip.data.text_records import field
from blip.errors import DataError
from blip.evaluate.bootstrap import Floats, Statistic
from blip.evaluate.captioning import write_captions
from blip.evaluate.evaluation_set import EvaluationSet
from blip.evaluate.results import report
from blip.files import read_json
from blip.metrics.ids import require_one_each
from blip.tracker import Tracker

log = logging.getLogger(__name__)

TASK = "nocaps"
DOMAINS = {"in": "in-domain", "near": "near-domain", "out": "out-domain"}  # ours: the file's
ENTIRE = "entire"

# Of the reference; a word that stands already is less welcome than in COCO's captions.
PROTOCOL = {
    "method": "beam",
    "num_beams": 3,
    "length_rule": "reference",
    "min_length": 5,
    "max_length": 20,
    "repetition_penalty": 1.1,
}


class Annotations(NamedTuple):
    """What people wrote of the photos, and the domain of each, by its id; names where they are told."""

    references: dict[ImageId, list[str]]
    domains: dict[ImageId, str]
    names: dict[ImageId, str]


def evaluate_nocaps(
    config: Config,
    checkpoint: Path,
    data: Path,
    photos: Path,
    annotations: Path | None,
    out: Path,
    tracker: Tracker,
) -> None:
    """Write captions of the photos for the server, and score them where captions of people are told.

    Args:
        config: The prompt of `finetune.captioning`, and `evaluate`; how captions are decoded is
            the benchmark's (`PROTOCOL`).
        checkpoint: Of a model that captions.
        data: `nocaps_val.json` or `nocaps_test.json`: `[{"image", "img_id"}]`.
        photos: The folder that names of photos are relative to.
        annotations: See `read_annotations`.
        out: The folder to write into.
        tracker: Told the metrics and the speed.

    Raises:
        DataError: A photo or a file cannot be read, or the two files are not of the same photos.
    """
    images = list(read_nocaps(data))
    ids = [image.image_id for image in images]
    require_unique(ids, data)
    told = None
    if annotations:
        told = read_annotations(annotations)
        _check_photos(images, told, data, annotations)
    decoding = config.evaluate.decoding.model_copy(update=PROTOCOL)
    evaluate = config.evaluate.model_copy(update={"decoding": decoding})
    names = [image.image for image in images]
    evaluation = EvaluationSet(data, names, [()] * len(names), [photos / name for name in names])
    started = time.monotonic()
    written = write_captions(
        config.model_copy(update={"evaluate": evaluate}), checkpoint, evaluation
    )
    tracker.metrics({"perf/images_per_second": len(names) / (time.monotonic() - started)})
    captions: dict[ImageId, str] = {image.image_id: written[image.image] for image in images}
    write_submission(captions, out, tracker)
    if told:
        _score(config, captions, told, out, tracker)
        return
    log.warning("%s tells no captions of people: there is a submission and no score", data)
    table = pa.table({"key": list(map(str, captions)), "caption": list(captions.values())})
    report(config, TASK, table, {}, {"images": len(table)}, out, tracker)


def score_nocaps(
    config: Config, predictions: Path, annotations: Path, out: Path, tracker: Tracker
) -> None:
    """Score captions that are there, in the format of the server, times 100.

    Writes `metrics.json`, for each domain and the entire set, with bootstrap intervals over all
    photos, and `per_example.parquet`: what `score_images` gives, and `domain`.

    Args:
        config: `evaluate` says how to resample.
        predictions: `[{"image_id", "caption"}]`.
        annotations: See `read_annotations`.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: A file breaks a rule, or the captions are not one for each photo.
    """
    told = read_annotations(annotations)
    captions = read_captions(predictions, told.references, annotations)
    _score(config, captions, told, out, tracker)


def read_annotations(path: Path) -> Annotations:
    """Read what people wrote, and domains: COCO's format, with a `domain` of each of the images.

    Raises:
        DataError: The file cannot be read or breaks a rule.
    """
    found = read_json(path)
    references = coco_references(found, path)
    domains: dict[ImageId, str] = {}
    names: dict[ImageId, str] = {}
    short = {long: name for name, long in DOMAINS.items()}
    for number, image in enumerate(found["images"], 1):
        where = f"{path}, image {number}"
        domain = field(image, "domain", str, where)
        if domain not in short:
            raise DataError(
                f"{where}: domain is {domain!r}, it must be one of {', '.join(short)}: fetch the "
                "file again"
            )
        domains[image["id"]] = short[domain]
        if "file_name" in image:
            names[image["id"]] = field(image, "file_name", str, where)
    return Annotations(references, domains, names)


def _check_photos(
    images: list[NocapsImage], told: Annotations, data: Path, annotations: Path
) -> None:
    """See that both files number the same photos in the same way."""
    require_one_each((image.image_id for image in images), told.references, data, annotations)
    for image in images:
        name, other = PurePosixPath(image.image).name, told.names.get(image.image_id)
        if other not in (None, name):
            raise DataError(
                f"{data}: image {image.image_id} is {name}, but in {annotations} it is {other}: "
                "fetch both of one version"
            )


def _score(
    config: Config,
    captions: Mapping[ImageId, str],
    told: Annotations,
    out: Path,
    tracker: Tracker,
) -> None:
    table = score_images(captions, told.references)
    domains = [told.domains[image_id] for image_id in told.references]
    statistics = all_statistics(table)
    found = {f"{ENTIRE}/{metric}": statistic for metric, statistic in statistics.items()}
    for domain in DOMAINS:
        within = np.array([other == domain for other in domains], dtype=np.float64)
        if within.any():
            found |= {f"{domain}/{name}": _of(within, s) for name, s in statistics.items()}
    counts = {f"{domain}/images": domains.count(domain) for domain in DOMAINS}
    table = table.append_column("domain", pa.array(domains))
    report(config, TASK, table, found, {**counts, f"{ENTIRE}/images": len(table)}, out, tracker)


def _of(within: Floats, statistic: Statistic) -> Statistic:
    """Restrict a statistic to some images."""
    return lambda draws: statistic(draws * within)
