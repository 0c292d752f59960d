"""The annotation files of the paper's benchmarks, as salesforce/BLIP has them (BLIP.md 5.1 to 5.4).

Each is a list in JSON, read record by record. A record that breaks a rule is an error that names
file, record, field, value and rule. Names of images are relative to the folder of the photos. Texts
are given as they stand; `blip.data.text` cleans them.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from blip.data.image_store import is_safe
from blip.data.sources import parse_blip
from blip.data.text import clean_caption
from blip.data.text_records import field, numbered, require
from blip.errors import DataError

VISUAL_GENOME_WEIGHT = 0.2  # of its one answer


@dataclass(frozen=True)
class CaptionRow:
    """One caption of a training image of COCO or Flickr30k.

    Attributes:
        image: Its name.
        caption: As written.
        number: Of the image, from 0 in the order of first appearance.
    """

    image: str
    caption: str
    number: int


@dataclass(frozen=True)
class RetrievalSet:
    """The images and texts of a retrieval test.

    Attributes:
        images: Their names.
        texts: As written, those of an image together.
        owner: The image of each text, an index.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    owner: tuple[int, ...]

    def own_texts(self) -> list[list[int]]:
        """Give the indices of the texts of each image."""
        own: list[list[int]] = [[] for _ in self.images]
        for text, image in enumerate(self.owner):
            own[image].append(text)
        return own


@dataclass(frozen=True)
class NocapsImage:
    """An image of NoCaps, and the id that its caption is handed in under."""

    image: str
    image_id: int


@dataclass(frozen=True)
class Question:
    """A question about an image (VQA v2, Visual Genome).

    Attributes:
        question_id: The answer is handed in under it.
        question: As written.
        image: Its name, relative to the photos of `dataset`.
        dataset: `vqa` or `vg`.
        answers: The different answers, in the order of first appearance; none in a test.
        weights: The share of people who gave each; of Visual Genome 0.2.
        num_answers: How many people answered.
    """

    question_id: int
    question: str
    image: str
    dataset: str
    answers: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    num_answers: int = 0


@dataclass(frozen=True)
class Statement:
    """A sentence about two images, true of them or not (NLVR2)."""

    sentence: str
    images: tuple[str, str]
    label: bool


def read_caption_rows(path: Path) -> Iterator[CaptionRow]:
    """Read training captions: rows of `image`, `caption`, `image_id`.

    Raises:
        DataError: The file is unreadable or breaks a rule.
    """
    numbers: dict[str, int] = {}
    for where, row in numbered(path):
        image_id = field(row, "image_id", str, where)
        number = numbers.setdefault(image_id, len(numbers))
        yield CaptionRow(_image(row, where), field(row, "caption", str, where), number)


def read_retrieval_set(path: Path) -> RetrievalSet:
    """Read a test set: rows of `image` and its list of `caption`.

    Raises:
        DataError: The file is unreadable or breaks a rule, or an image has no caption.
    """
    records = list(parse_blip(path))
    for number, record in enumerate(records, 1):
        where = f"{path}, record {number}"
        _safe(record.source, "image", where)
        require(record.captions, where, "caption", [], "texts, one at least")
    return RetrievalSet(
        images=tuple(record.source for record in records),
        texts=tuple(text for record in records for text in record.captions),
        owner=tuple(i for i, record in enumerate(records) for _ in record.captions),
    )


def coco_image_id(image: str) -> int:
    """Give the id in the name of a photo of COCO: the number behind the last underscore.

    Raises:
        DataError: There is none.
    """
    digits = PurePosixPath(image).stem.rpartition("_")[2]
    if not (digits.isascii() and digits.isdigit()):
        raise DataError(
            f"image {image!r} has no number behind its last underscore, which is its id: "
            "name it as COCO does, e.g. COCO_val2014_000000391895.jpg"
        )
    return int(digits)


def read_nocaps(path: Path) -> Iterator[NocapsImage]:
    """Read the images of NoCaps: rows of `image`, `img_id`.

    Raises:
        DataError: The file is unreadable or breaks a rule.
    """
    for where, row in numbered(path):
        image_id = str(field(row, "img_id", (int, str), where))
        number = image_id.isascii() and image_id.isdigit()
        require(number, where, "img_id", image_id, "a number")
        yield NocapsImage(_image(row, where), int(image_id))


def read_questions(path: Path) -> Iterator[Question]:
    """Read questions: rows of `question_id`, `question`, `image`, `dataset`, and `answer`.

    An `answer` is a list of what people answered (`vqa`) or one text (`vg`); a test has none.

    Raises:
        DataError: The file is unreadable or breaks a rule.
    """
    for where, row in numbered(path):
        dataset = field(row, "dataset", str, where)
        require(dataset in ("vqa", "vg"), where, "dataset", dataset, "vqa or vg")
        answers, weights, num_answers = _answers(row, dataset, where)
        yield Question(
            question_id=field(row, "question_id", int, where),
            question=field(row, "question", str, where),
            image=_image(row, where),
            dataset=dataset,
            answers=answers,
            weights=weights,
            num_answers=num_answers,
        )


def read_answer_list(path: Path) -> list[str]:
    """Read the answers that a model chooses from: a list of texts.

    Raises:
        DataError: The file is unreadable or breaks a rule, or there is none.
    """
    answers = []
    for where, answer in numbered(path):
        require(isinstance(answer, str) and answer.strip(), where, "answer", answer, "a text")
        answers.append(answer)
    if not answers:
        raise DataError(f"{path}: holds no answer: fetch it again")
    return answers


def read_statements(path: Path) -> Iterator[Statement]:
    """Read statements: rows of `sentence`, `images` (two names), `label` ("True" or "False").

    Raises:
        DataError: The file is unreadable or breaks a rule.
    """
    for where, row in numbered(path):
        label = field(row, "label", str, where)
        require(label in ("True", "False"), where, "label", label, '"True" or "False"')
        images = field(row, "images", list, where)
        require(len(images) == 2, where, "images", images, "two names")
        first, second = (_safe(image, "images", where) for image in images)
        yield Statement(field(row, "sentence", str, where), (first, second), label == "True")


def swapped(statement: Statement) -> Statement:
    """Let the images of a statement change places, and the words left and right with them.

    Half of the training examples are swapped (BLIP.md 5.4); the reference swaps in tests too, which
    only adds noise. It swaps words of the cleaned sentence, so the result is clean.
    """
    other = {"left": "right", "right": "left"}
    words = clean_caption(statement.sentence, sys.maxsize).split(" ")
    first, second = statement.images
    sentence = " ".join(other.get(word, word) for word in words)
    return replace(statement, sentence=sentence, images=(second, first))


def _answers(row: Any, dataset: str, where: str) -> tuple[tuple[str, ...], tuple[float, ...], int]:
    """Give the different answers, their weights, and how many people answered."""
    if "answer" not in row:
        return (), (), 0
    if dataset == "vg":
        return (field(row, "answer", str, where),), (VISUAL_GENOME_WEIGHT,), 1
    given = field(row, "answer", list, where)
    texts = given and all(isinstance(answer, str) for answer in given)
    require(texts, where, "answer", given, "texts, one at least")
    counts = Counter(given)  # in the order of first appearance
    return tuple(counts), tuple(count / len(given) for count in counts.values()), len(given)


def _image(row: Any, where: str) -> str:
    return _safe(field(row, "image", str, where), "image", where)


def _safe(image: Any, name: str, where: str) -> str:
    safe = isinstance(image, str) and is_safe(image)
    require(safe, where, name, image, "a plain path below the folder of the photos")
    return str(image)
