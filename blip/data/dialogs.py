"""The dialogs of VisDial v1.0 as the benchmark has them, and what people thought of their answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.data.text import has_words
from blip.data.text_records import field, numbered
from blip.errors import DataError
from blip.files import read_json
from blip.metrics.ids import require_one_each

OPTIONS = 100  # candidates of a round

Key = tuple[int, int]
"""Image id and number of the round, from 1: what a round is handed in under."""


@dataclass(frozen=True)
class Round:
    """A question, and what was or may be answered.

    Attributes:
        question: As written.
        answer: As written; empty where it is not told, as in the last round of a test.
        options: The candidates; none in a round that only leads to the one that is ranked.
        right: The place of the answer among the options; `None` where it is not told.
    """

    question: str
    answer: str
    options: tuple[str, ...]
    right: int | None


@dataclass(frozen=True)
class Dialog:
    """A dialog about a photo with a caption."""

    image_id: int
    caption: str
    rounds: tuple[Round, ...]

    @property
    def ranked(self) -> dict[Key, Round]:
        """The rounds with options: all, or of a test the last."""
        numbered = enumerate(self.rounds, 1)
        return {(self.image_id, number): each for number, each in numbered if each.options}


@dataclass(frozen=True)
class DialogSet:
    """Dialogs about photos.

    Attributes:
        source: The file, for messages.
        split: `val2018` or `test2018`, which names the photos.
        dialogs: In the order of the file.
        relevance: What share of people found each option right, of the rounds that were asked for.
    """

    source: Path
    split: str
    dialogs: Sequence[Dialog]
    relevance: Mapping[Key, Sequence[float]]

    @property
    def keys(self) -> list[Key]:
        """The rounds with options, dialog by dialog."""
        return [key for dialog in self.dialogs for key in dialog.ranked]

    def photo(self, dialog: Dialog) -> str:
        """Name the photo of a dialog as the benchmark does."""
        folder = f"VisualDialog_{self.split}"
        return f"{folder}/{folder}_{dialog.image_id:012d}.jpg"


def open_dialogs(data: Path, annotations: Path | None = None) -> DialogSet:
    """Read dialogs.

    Args:
        data: `visdial_1.0_val.json` or `visdial_1.0_test.json`.
        annotations: `visdial_1.0_val_dense_annotations.json`, for NDCG.

    Raises:
        DataError: A file cannot be read or breaks a rule, or they do not belong together.
    """
    document = read_json(data)
    split = field(document, "split", str, f"{data}")
    content = field(document, "data", dict, f"{data}")
    questions, answers = (_texts(content, name, data) for name in ("questions", "answers"))
    dialogs = [
        _read_dialog(row, questions, answers, f"{data}, dialogs, record {number}")
        for number, row in enumerate(field(content, "dialogs", list, f"{data}, data"), 1)
    ]
    if not dialogs:
        raise DataError(f"{data}: holds no dialog: fetch it again")
    ids = [dialog.image_id for dialog in dialogs]
    require_one_each(ids, ids, data, data)
    plain = DialogSet(data, f"{split.removesuffix('2018')}2018", dialogs, {})
    if annotations is None:
        return plain
    return DialogSet(data, plain.split, dialogs, _read_relevance(annotations, plain))


def _texts(content: Any, name: str, data: Path) -> list[str]:
    texts = field(content, name, list, f"{data}, data")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise DataError(
                f"{data}, {name}, record {number}: is {text!r:.80}, it must be str: mend it"
            )
    return texts


def _read_dialog(row: Any, questions: Sequence[str], answers: Sequence[str], where: str) -> Dialog:
    rounds = field(row, "dialog", list, where)
    last = len(rounds)
    if not rounds:
        raise DataError(
            f"{where}: dialog is empty, it must have a round: mend or remove the record"
        )
    return Dialog(
        field(row, "image_id", int, where),
        field(row, "caption", str, where),
        tuple(
            _read_round(each, questions, answers, number == last, f"{where}, round {number}")
            for number, each in enumerate(rounds, 1)
        ),
    )


def _read_round(
    row: Any, questions: Sequence[str], answers: Sequence[str], last: bool, where: str
) -> Round:
    question = _pick(questions, field(row, "question", int, where), "question", where)
    if not has_words(question):
        raise DataError(
            f"{where}: question is {question!r}, it must say something: mend the record"
        )
    told = "answer" in row or not last
    answer = _pick(answers, field(row, "answer", int, where), "answer", where) if told else ""
    options: tuple[str, ...] = ()
    if "answer_options" in row or last:
        places = field(row, "answer_options", list, where)
        if len(places) != OPTIONS:
            raise DataError(
                f"{where}: answer_options are {len(places)}, it must be {OPTIONS}: mend the record"
            )
        options = tuple(_pick(answers, place, "answer_options", where) for place in places)
    right = field(row, "gt_index", int, where) if "gt_index" in row else None
    if right is not None and not 0 <= right < len(options):
        raise DataError(
            f"{where}: gt_index is {right}, it must be a place among {len(options)} options: mend "
            "the record"
        )
    return Round(question, answer, options, right)


def _pick(texts: Sequence[str], place: Any, name: str, where: str) -> str:
    if not isinstance(place, int) or not 0 <= place < len(texts):
        raise DataError(
            f"{where}: {name} has {place!r:.80}, it must be a place among the {len(texts)} texts of "
            "the file: mend or remove the record"
        )
    return texts[place]


def _read_relevance(path: Path, dialogs: DialogSet) -> dict[Key, Sequence[float]]:
    """Read rows of `image_id`, `round_id` and `gt_relevance` (`relevance` in the training split)."""
    found: dict[Key, Sequence[float]] = {}
    known = set(dialogs.keys)
    for where, row in numbered(path):
        key = field(row, "image_id", int, where), field(row, "round_id", int, where)
        name = "relevance" if "relevance" in row else "gt_relevance"
        values = field(row, name, list, where)
        shares = all(isinstance(v, int | float) and 0 <= v <= 1 for v in values)
        if len(values) != OPTIONS or not shares or not any(values):
            raise DataError(
                f"{where}: {name} is {values!r:.80}, it must be {OPTIONS} shares from 0 to 1, one "
                "above 0 at least: mend or remove the record"
            )
        if key not in known or key in found:
            raise DataError(
                f"{where}: image {key[0]}, round {key[1]} stands twice or is no round of "
                f"{dialogs.source}: give the annotations of this split"
            )
        found[key] = values
    return found
