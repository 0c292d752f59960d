"""OVAD, box oracle: which attributes does an object have that is cut out by its annotated box?

A box is scored for an attribute by the highest cosine with any of its sentences; the mean average
precision is taken over attributes (`blip.metrics.attributes`). As the official code does, boxes of
less than `MIN_AREA` are left out, corners and sides lose their fractions, what reaches over the
right or lower edge of the photo is cut off there, and crops are resized to a square bilinearly. A
box that begins outside of the photo or has no pixel is an error, since its code ends there too.

Source: Bravo et al. 2023; `ovamc/ova_blip.py`, `ovamc/misc.py` and `tools/extract_obj_boxes.py` of
OVAD-Benchmark/ovad-benchmark-code; published for model_base_retrieval_coco with the prompt `the`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL.Image import Resampling
from torch import Tensor

from blip.benchmarks.records import is_finite, photo, score
from blip.config import Config
from blip.data.loader import ahead
from blip.data.tasks import read_photo
from blip.data.text_records import field, numbered, require
from blip.data.transforms import evaluation_resize, normalise
from blip.distributed import Team, rank
from blip.errors import DataError
from blip.evaluate.bootstrap import Floats, Statistic
from blip.evaluate.evaluation_set import THREADS, require_photos
from blip.evaluate.network import open_network
from blip.evaluate.results import report
from blip.files import read_json
from blip.metrics.attributes import average_precisions, mean_average_precision
from blip.metrics.ids import require_one_each
from blip.models.blip import Blip
from blip.models.device import autocast
from blip.models.matching import Texts, embed_texts
from blip.progress import Progress
from blip.tracker import Tracker

TASK = "ovad"

MIN_AREA = 50.0  # square pixels, of the annotation
MAX_TOKENS = 30
FREQUENCIES = ("head", "medium", "tail")
# Of the prompt `the`, by whether something has or is the attribute.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "has": ("the {attribute} {of} {noun}", "the {noun} has {attribute} {of}"),
    "is": ("the {attribute} {noun}", "the {noun} is {attribute}"),
}
NOUN = ""
MORE_WORDS = {
    "young/baby": ("kid", "kids", "child", "toddler", "boy", "girl"),
    "adult/old/aged": ("teen", "elder"),
}


@dataclass(frozen=True)
class Attribute:
    """An attribute.

    Attributes:
        name: `kind:word/word`.
        kind: `has` or `is`.
        frequency: `head`, `medium` or `tail`.
    """

    name: str
    kind: str
    frequency: str

    @property
    def sentences(self) -> list[str]:
        """What says that something has it: two sentences a word."""
        of, _, words = self.name.partition(":")
        slots = {"of": of.replace(" tone", ""), "noun": NOUN}
        return [
            template.format(attribute=word, **slots).strip()
            for word in (*words.split("/"), *MORE_WORDS.get(words, ()))
            for template in TEMPLATES[self.kind]
        ]


@dataclass(frozen=True)
class Box:
    """An object of a photo.

    Attributes:
        number: Its id.
        image: The photo's name.
        corner: Left and top, in whole pixels.
        size: Width and height, in whole pixels.
        labels: Of each attribute: 1 it has it, 0 it has not, -1 nobody said.
    """

    number: int
    image: str
    corner: tuple[int, int]
    size: tuple[int, int]
    labels: tuple[int, ...]


def read_boxes(path: Path) -> tuple[list[Attribute], list[Box]]:
    """Read `ovad2000.json`: its attributes, and the boxes that are large enough to count.

    Raises:
        DataError: The file is unreadable or breaks a rule.
    """
    document = read_json(path)
    attributes = [
        _attribute(item, number, f"{path}, attributes, record {number + 1}")
        for number, item in enumerate(field(document, "attributes", list, f"{path}"))
    ]
    images: dict[int, str] = {}
    for number, item in enumerate(field(document, "images", list, f"{path}"), 1):
        where = f"{path}, images, record {number}"
        name = photo(field(item, "file_name", str, where), where)
        images[field(item, "id", int, where)] = name
    annotations = field(document, "annotations", list, f"{path}")
    boxes = [
        box
        for number, item in enumerate(annotations, 1)
        if (box := _box(item, images, len(attributes), f"{path}, annotations, record {number}"))
    ]
    if not (attributes and boxes):
        raise DataError(f"{path}: holds no box with attributes: fetch it again")
    keys = [box.number for box in boxes]
    require_one_each(keys, keys, path, path)
    return attributes, boxes


def evaluate_ovad(
    config: Config, checkpoint: Path, data: Path, photos: Path, out: Path, tracker: Tracker
) -> None:
    """Measure a model: mean average precision over all, head, medium and tail attributes, in percent.

    Processes that torchrun started share the boxes.

    Args:
        config: `evaluate` is read.
        checkpoint: Of a model that matches.
        data: `ovad2000.json`.
        photos: The folder of COCO's val2017.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: The file breaks a rule, a photo is missing or damaged, or a box is outside of it.
    """
    attributes, boxes = read_boxes(data)
    boxes = sorted(boxes, key=lambda box: box.image)
    require_photos(photos / name for name in dict.fromkeys(box.image for box in boxes))
    model, tokenizer, device = open_network(checkpoint, "matching", config.threads)
    sentences = [sentence for attribute in attributes for sentence in attribute.sentences]
    texts = Texts(*tokenizer.encode(sentences, MAX_TOKENS))
    first = np.cumsum([0] + [len(attribute.sentences) for attribute in attributes[:-1]])
    size, team = config.evaluate.batch_size, Team()
    mine = team.share(len(boxes), size)
    progress = Progress("scoring", len(mine), "boxes", shown=rank() == 0)
    scores: list[NDArray[np.float32]] = []
    with torch.inference_mode(), autocast(device, config.evaluate.precision):
        embeds = embed_texts(model, texts, size)
    for crops in _crops(boxes[mine.start : mine.stop], photos, model.image_size, size):
        with torch.inference_mode(), autocast(device, config.evaluate.precision):
            cosine = _embed(model, crops.to(device)) @ embeds.T
        scores.append(np.maximum.reduceat(cosine.float().cpu().numpy(), first, axis=1))
        progress.advance(len(crops))
    _report(config, attributes, boxes, np.concatenate(team.gather(scores)), out, tracker)


def score_ovad(config: Config, predictions: Path, data: Path, out: Path, tracker: Tracker) -> None:
    """Score what another model gave: a JSON list of a box's `id` and its `scores`, one an attribute.

    Raises:
        DataError: A file breaks a rule, a score is not a number, or predictions are missing,
            surplus, or stand twice.
    """
    attributes, boxes = read_boxes(data)
    given: dict[int, list[float]] = {}
    keys = []
    for where, item in numbered(predictions):
        keys.append(field(item, "id", int, where))
        scores = field(item, "scores", list, where)
        finite = len(scores) == len(attributes) and all(map(is_finite, scores))
        require(finite, where, "scores", scores, f"{len(attributes)} finite numbers")
        given[keys[-1]] = scores
    require_one_each(keys, [box.number for box in boxes], predictions, data)
    found = np.array([given[box.number] for box in boxes])
    _report(config, attributes, boxes, found, out, tracker)


def crop(image: Tensor, box: Box, where: object) -> Tensor:
    """Cut a box out of a photo (3, H, W).

    Raises:
        DataError: It begins outside of the photo, or has no pixel there.
    """
    (left, top), (width, height) = box.corner, box.size
    found = image[:, max(top, 0) : top + height, max(left, 0) : left + width]
    if min(left, top) < 0 or not found.numel():
        raise DataError(
            f"{where}: box {box.number} begins at {left}, {top} and is {width} x {height} pixels, "
            f"outside of the photo of {image.shape[2]} x {image.shape[1]}: mend the annotation"
        )
    return found


def _embed(model: Blip, crops: Tensor) -> Tensor:
    return model.embed_image(model.vision(normalise(crops), pooled=True))


def _crops(boxes: Sequence[Box], photos: Path, size: int, batch_size: int) -> Iterator[Tensor]:
    """Give the crops of boxes, batch by batch (b, 3, S, S) uint8.

    The boxes of a photo stand together, so that threads decode each photo once.
    """
    names = list(dict.fromkeys(box.image for box in boxes))
    of_photo: dict[str, list[Box]] = {name: [] for name in names}
    for box in boxes:
        of_photo[box.image].append(box)

    def load(number: int) -> tuple[Tensor, ...]:
        path = photos / names[number]
        image = read_photo(path)
        cut = [crop(image, box, path) for box in of_photo[names[number]]]
        return (torch.stack([evaluation_resize(part, size, Resampling.BILINEAR) for part in cut]),)

    waiting = torch.empty(0, 3, size, size, dtype=torch.uint8)
    for (crops,) in ahead(load, range(len(names)), THREADS):
        waiting = torch.cat([waiting, crops])
        while len(waiting) >= batch_size:
            yield waiting[:batch_size]
            waiting = waiting[batch_size:]
    if len(waiting):
        yield waiting


class _Precisions:
    """The average precisions of resamples, computed once for all the means over them."""

    def __init__(
        self, labels: NDArray[np.int8], scores: NDArray[Any], groups: Mapping[str, list[int]]
    ) -> None:
        self._labels, self._scores, self._groups = labels, scores, groups
        self._draws: Floats | None = None
        self._means: Mapping[str, Floats] = {}

    def mean(self, group: str) -> Statistic:
        def statistic(draws: Floats) -> Floats:
            if draws is not self._draws:
                each = average_precisions(self._labels, self._scores, draws)
                self._means, self._draws = mean_average_precision(each, self._groups), draws
            return self._means[group]

        return statistic


def _report(
    config: Config,
    attributes: Sequence[Attribute],
    boxes: Sequence[Box],
    scores: NDArray[Any],
    out: Path,
    tracker: Tracker,
) -> None:
    labels = np.array([box.labels for box in boxes], dtype=np.int8)
    groups = {
        name: [i for i, attribute in enumerate(attributes) if attribute.frequency == name]
        for name in FREQUENCIES
    }
    precisions = _Precisions(labels, scores, groups)
    statistics = {f"map_{name}": precisions.mean(name) for name in ("all", *FREQUENCIES)}
    columns = {
        "id": [box.number for box in boxes],
        "image": [box.image for box in boxes],
        "labels": pa.array(labels.tolist(), pa.list_(pa.int8())),
        "scores": pa.array(scores.tolist(), pa.list_(pa.float32())),
    }
    scored = int(((labels == 1).sum(axis=0) > 0).sum())
    counts = {"boxes": len(boxes), "attributes": len(attributes), "attributes_scored": scored}
    report(config, TASK, pa.table(columns), statistics, counts, out, tracker)


def _attribute(item: Any, number: int, where: str) -> Attribute:
    require(
        field(item, "id", int, where) == number, where, "id", item["id"], f"{number}, its place"
    )
    name = field(item, "name", str, where)
    kind, frequency = field(item, "is_has_att", str, where), field(item, "freq_set", str, where)
    of, colon, words = name.partition(":")
    require(
        of and colon and words, where, "name", name, "a type, a colon, and words between slashes"
    )
    require(kind in TEMPLATES, where, "is_has_att", kind, "has or is")
    require(frequency in FREQUENCIES, where, "freq_set", frequency, f"one of {FREQUENCIES}")
    return Attribute(name, kind, frequency)


def _box(item: Any, images: Mapping[int, str], num_attributes: int, where: str) -> Box | None:
    """Give a box, or nothing if it is too small to count."""
    image = field(item, "image_id", int, where)
    require(image in images, where, "image_id", image, "that of one of the images")
    bounds = field(item, "bbox", list, where)
    four = len(bounds) == 4 and all(map(is_finite, bounds))
    require(four, where, "bbox", bounds, "x, y, width and height")
    labels = field(item, "att_vec", list, where)
    known = len(labels) == num_attributes and all(value in (1, 0, -1) for value in labels)
    require(known, where, "att_vec", labels, f"1, 0 or -1 for each of {num_attributes} attributes")
    left, top, width, height = (int(value) for value in bounds)
    number = field(item, "id", int, where)
    large = score(item, "area", where) >= MIN_AREA
    return (
        Box(number, images[image], (left, top), (width, height), tuple(labels)) if large else None
    )
