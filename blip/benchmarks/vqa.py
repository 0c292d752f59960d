"""VQA v2: a model that answers questions about photos, or answers that are there, scored officially.

BLIP.md 5.3. Questions come as the benchmark has them (`v2_OpenEnded_mscoco_*_questions.json`, with
the answers of people in `v2_mscoco_*_annotations.json`) or as salesforce/BLIP does
(`vqa_val.json`, `vqa_test.json`). Where nobody's answers are told, as in a test, there is a
submission for the server and no score.
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from blip.benchmarks.records import require_unique, words
from blip.config import Config
from blip.data.annotations import Question, read_answer_list, read_questions
from blip.data.text_records import field, is_json_list, json_items, numbered
from blip.distributed import Team, rank
from blip.errors import DataError
from blip.evaluate.bootstrap import Statistic, mean
from blip.evaluate.evaluation_set import Photos, require_photos
from blip.evaluate.features import image_tokens
from blip.evaluate.network import Network, open_network
from blip.evaluate.results import SUBMISSION, report
from blip.evaluate.vqa import Answerer, ground_questions, tokenize_questions
from blip.files import read_json, write_json
from blip.metrics.ids import name_some, require_one_each
from blip.metrics.vqa import Asked, score, summarise
from blip.models.device import autocast
from blip.models.matching import Texts
from blip.progress import Progress
from blip.tracker import Tracker

log = logging.getLogger(__name__)

TASK = "vqa"

PER_QUESTION = pa.schema(
    [
        pa.field("question_id", pa.int64(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("accuracy", pa.float64()),  # 0 to 1; null where people's answers are not told
        pa.field("question_type", pa.string(), nullable=False),
        pa.field("answer_type", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class QuestionSet:
    """Questions about photos.

    Attributes:
        source: The file, for messages.
        questions: In the order of the file.
        asked: What people answered, in the order of their file; `None` where it is not told.
    """

    source: Path
    questions: Sequence[Question]
    asked: Sequence[Asked] | None


def open_questions(data: Path, annotations: Path | None = None) -> QuestionSet:
    """Read questions, with the answers that are told.

    Args:
        data: The official questions, or a list as salesforce/BLIP has it.
        annotations: The official answers to the official questions.

    Raises:
        DataError: A file cannot be read or breaks a rule, or the two are not of the same questions.
    """
    questions = list(_blip_questions(data) if is_json_list(data) else _official_questions(data))
    if not questions:
        raise DataError(f"{data}: holds no question: fetch it again")
    ids = [question.question_id for question in questions]
    require_unique(ids, data)
    for question in questions:
        words(question.question, "question", f"{data}, question {question.question_id}")
    if annotations is None and not any(question.answers for question in questions):
        return QuestionSet(data, questions, None)
    asked = read_asked(annotations or data)
    require_one_each((q.question_id for q in asked), ids, annotations or data, data)
    return QuestionSet(data, questions, asked)


def read_asked(path: Path) -> list[Asked]:
    """Read what people answered: the official annotations, or a list as salesforce/BLIP has it.

    Raises:
        DataError: The file cannot be read, breaks a rule, or tells no answers.
    """
    asked = list(_blip_answers(path) if is_json_list(path) else _official_answers(path))
    if not asked:
        raise DataError(f"{path}: holds no question: fetch it again")
    require_unique((question.question_id for question in asked), path)
    return asked


def evaluate_vqa(
    config: Config,
    checkpoint: Path,
    questions: QuestionSet,
    photos: Path,
    answers: Path | None,
    out: Path,
    tracker: Tracker,
) -> None:
    """Let a model answer questions, and score it where people's answers are told.

    Writes `submission.json` as the server wants it, and what `score_vqa` writes.

    Args:
        config: `evaluate` is read.
        checkpoint: Of a model with the parts `vqa`.
        questions: What to ask.
        photos: The folder that the names of the photos are relative to.
        answers: The list to choose from, by rank; `None` lets the model write.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: A photo is missing or cannot be decoded, or a file breaks a rule.
    """
    candidates = None if answers is None else read_answer_list(answers)
    require_photos(photos / name for name in dict.fromkeys(q.image for q in questions.questions))
    network = open_network(checkpoint, "vqa", config.threads)
    said = answer_questions(network, config, questions.questions, photos, candidates)
    ids = [question.question_id for question in questions.questions]
    rows = [{"question_id": question_id, "answer": said[question_id]} for question_id in ids]
    write_json(out / SUBMISSION, rows)
    tracker.artifact(out / SUBMISSION)
    asked, accuracies = questions.asked, None
    if asked is None:
        log.warning(
            "%s tells no answers of people: there is a submission and no score", questions.source
        )
        asked = [Asked(question.question_id, ()) for question in questions.questions]
    else:
        accuracies = score(said.items(), asked, checkpoint, questions.source)
    _report(config, said, asked, accuracies, out, tracker)


def score_vqa(
    config: Config, predictions: Path, asked: Sequence[Asked], out: Path, tracker: Tracker
) -> None:
    """Score answers that are there.

    Writes `accuracy.json`, which is the official summary, `metrics.json` with bootstrap intervals
    over questions, and `per_example.parquet` (`PER_QUESTION`).

    Args:
        config: `evaluate` says how to resample.
        predictions: `[{"question_id", "answer"}]`, as the server takes it.
        asked: What people answered.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: The file breaks a rule, or the predictions are not one for each question.
    """
    pairs = list(_read_predictions(predictions))
    accuracies = score(pairs, asked, predictions, "the annotations")
    _report(config, dict(pairs), asked, accuracies, out, tracker)


@torch.inference_mode()
def answer_questions(
    network: Network,
    config: Config,
    questions: Sequence[Question],
    photos: Path,
    candidates: Sequence[str] | None,
) -> dict[int, str]:
    """Answer questions, those about a photo together: it is encoded and projected once.

    Processes that torchrun started share the photos.

    Args:
        network: A model with the parts `vqa`.
        config: `evaluate` gives how many photos, and questions, are read at once.
        questions: In any order.
        photos: The folder of the photos.
        candidates: Answers to choose from; `None` lets the model write.

    Returns:
        Answers, by question id.

    Raises:
        CheckpointError: A score is not a number.
    """
    model, tokenizer, device = network
    by_photo: defaultdict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_photo[question.image].append(question)
    names, own_of = list(by_photo), list(by_photo.values())
    size, precision, team = config.evaluate.batch_size, config.evaluate.precision, Team()
    mine = team.share(len(names), size)
    answer = Answerer(network, candidates)
    progress = Progress("answering", len(mine), "photos", shown=rank() == 0)
    answers: list[tuple[int, str]] = []
    images = Photos([photos / name for name in names])
    for rows, tokens in image_tokens(model, images, size, precision, mine):
        own = own_of[rows.start : rows.stop]
        asked = [question for each in own for question in each]
        owner = torch.repeat_interleave(torch.tensor([len(each) for each in own]))
        texts = tokenize_questions(tokenizer, [question.question for question in asked])
        readers = max(map(len, own)) * texts.token_ids.shape[1]
        with autocast(device, precision):
            memory = model.project_images(tokens, readers)
            for places, ids, mask in texts.batches(torch.arange(len(asked)), size):
                grounded = ground_questions(model, memory, Texts(ids, mask), owner[places])
                for place, said in zip(places.tolist(), answer(grounded), strict=True):
                    answers.append((asked[place].question_id, said))
        progress.advance(len(rows))
    return dict(team.gather(answers))


def _report(
    config: Config,
    said: dict[int, str],
    asked: Sequence[Asked],
    accuracies: Sequence[float] | None,
    out: Path,
    tracker: Tracker,
) -> None:
    columns: list[object] = [
        [question.question_id for question in asked],
        [said[question.question_id] for question in asked],
        accuracies if accuracies is not None else pa.nulls(len(asked)),
        [question.question_type for question in asked],
        [question.answer_type for question in asked],
    ]
    if accuracies is not None:
        write_json(out / "accuracy.json", summarise(accuracies, asked))
    table = pa.table(columns, schema=PER_QUESTION)
    report(config, TASK, table, statistics(table), {"questions": len(asked)}, out, tracker)


def statistics(per_question: pa.Table) -> dict[str, Statistic]:
    """Give the accuracy of a `PER_QUESTION` table, in percent, of all and by the type of answer."""
    if per_question["accuracy"].null_count:
        return {}
    accuracy = 100.0 * per_question["accuracy"].to_numpy()
    types = per_question["answer_type"].to_numpy()
    found = {"accuracy": mean(accuracy)}
    for name in sorted(filter(None, set(types))):
        chosen = types == name
        found[f"accuracy_{name.replace('/', '_')}"] = mean(accuracy * chosen, chosen)
    return found


def _official_questions(path: Path) -> Iterator[Question]:
    """Read `questions` of `question_id`, `question`, `image_id`, whose photos are those of COCO."""
    document = read_json(path)
    subset = field(document, "data_subtype", str, f"{path}")
    folder = "test2015" if subset.startswith("test") else subset  # test-dev is a part of test
    for number, row in enumerate(field(document, "questions", list, f"{path}"), 1):
        where = f"{path}, questions, record {number}"
        image_id = field(row, "image_id", int, where)
        yield Question(
            question_id=field(row, "question_id", int, where),
            question=field(row, "question", str, where),
            image=f"{folder}/COCO_{folder}_{image_id:012d}.jpg",
            dataset=TASK,
        )


def _official_answers(path: Path) -> Iterator[Asked]:
    """Read `annotations` one by one, of `question_id`, the two types, and `answers`."""
    for number, row in enumerate(json_items(path, "annotations"), 1):
        where = f"{path}, annotations, record {number}"
        given = field(row, "answers", list, where)
        # The evaluator compares whole answers to tell a person from the others.
        people = {field(answer, "answer_id", int, where) for answer in given}
        if not given or len(people) < len(given):
            raise DataError(
                f"{where}: answers are {len(given)} of {len(people)} people, it must be one of each "
                "and one at least: mend or remove the record"
            )
        yield Asked(
            question_id=field(row, "question_id", int, where),
            answers=tuple(sys.intern(field(answer, "answer", str, where)) for answer in given),
            question_type=sys.intern(field(row, "question_type", str, where)),
            answer_type=sys.intern(field(row, "answer_type", str, where)),
        )


def _blip_questions(path: Path) -> Iterator[Question]:
    for question in read_questions(path):
        if question.dataset != TASK:
            raise DataError(
                f"{path}: question {question.question_id} is of {question.dataset!r}, which only "
                "trains: evaluate on questions of VQA alone"
            )
        yield question


def _blip_answers(path: Path) -> Iterator[Asked]:
    unanswered = []
    for question in _blip_questions(path):
        if not question.answers:
            unanswered.append(question.question_id)
        counts = (round(weight * question.num_answers) for weight in question.weights)
        pairs = zip(question.answers, counts, strict=True)
        yield Asked(question.question_id, tuple(a for a, count in pairs for _ in range(count)))
    if unanswered:
        raise DataError(f"{path}: questions {name_some(unanswered)} have no answers to score by")


def _read_predictions(path: Path) -> Iterator[tuple[int, str]]:
    for where, row in numbered(path):
        yield field(row, "question_id", int, where), field(row, "answer", str, where)
