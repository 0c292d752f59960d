"""Questions about videos, zero-shot: MSVD-QA, MSRVTT-QA and ActivityNet-QA.

A model that was trained to answer about photos reads the tokens of sixteen frames as one image. It
writes its answer, or ranks those of the training set. An answer is right where it is the given one,
letter for letter. The reference never released this code; the facts are the author's (BLIP.md 5.6).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from blip.benchmarks.records import question_text, text
from blip.benchmarks.video_retrieval import Frames, video_tokens
from blip.config import Config
from blip.data.tasks import MAX_ANSWER_TOKENS
from blip.data.text import Tokenizer, clean_question
from blip.data.text_records import field, numbered, read_lines, require
from blip.data.video import Videos
from blip.distributed import Team, rank
from blip.errors import DataError
from blip.evaluate.bootstrap import Statistic, mean
from blip.evaluate.network import open_network
from blip.evaluate.results import report
from blip.evaluate.vqa import (
    ANSWER,
    QUESTION_TOKENS,
    QUESTION_WORDS,
    encode_questions,
    rank_answers,
)
from blip.files import write_json
from blip.metrics.ids import require_one_each
from blip.metrics.video_qa import TYPES, activitynet_shares, exact_matches
from blip.models.blip import Blip
from blip.models.device import autocast
from blip.models.generation import generate
from blip.models.matching import Texts
from blip.progress import track
from blip.tracker import Tracker

TASK = "video_qa"
PREDICTIONS = "predictions.json"

NUM_FRAMES = 16
RANKED = 128  # answers that are scored in full, or all where there are fewer


@dataclass(frozen=True)
class VideoQuestion:
    """A question about a video.

    Attributes:
        question_id: A number; of ActivityNet-QA a name.
        video: Names that its file may have, without extension.
        answer: The right one.
        kind: Of ActivityNet-QA, a number below 9 (`blip.metrics.video_qa.TYPES`).
    """

    question_id: int | str
    video: tuple[str, ...]
    question: str
    answer: str
    kind: int | None = None


def read_video_questions(
    data: Path, annotations: Path | None = None, mapping: Path | None = None
) -> list[VideoQuestion]:
    """Read questions.

    Args:
        data: MSVD-QA or MSRVTT-QA: rows of `id`, `video_id`, `question`, `answer`. ActivityNet-QA:
            rows of `question_id`, `video_name`, `question`.
        annotations: Of ActivityNet-QA the answers: rows of `question_id`, `answer`, `type`. Their
            order is that of the questions here.
        mapping: Of MSVD-QA `youtube_mapping.txt`: lines of a video's name and `vid` with its number.
            Without, the video of number 7 is called `video7`, as in MSRVTT-QA, or `vid7`.

    Raises:
        DataError: A file is unreadable or breaks a rule, or questions and answers do not belong
            together.
    """
    if annotations is not None:
        questions = _activitynet(data, annotations)
    else:
        names = {} if mapping is None else _read_mapping(mapping)
        questions = []
        for where, item in numbered(data):
            number = field(item, "video_id", int, where)
            rule = "that of a video in the file that --mapping names"
            require(not names or number in names, where, "video_id", number, rule)
            questions.append(
                VideoQuestion(
                    question_id=field(item, "id", int, where),
                    video=(names[number],) if names else (f"video{number}", f"vid{number}"),
                    question=question_text(field(item, "question", str, where), where),
                    answer=field(item, "answer", str, where),
                )
            )
    if not questions:
        raise DataError(f"{data}: holds no question: fetch it again")
    keys = [question.question_id for question in questions]
    require_one_each(keys, keys, data, data)
    return questions


def read_answers(path: Path) -> list[str]:
    """Read the answers to rank: a JSON list of texts, or of rows with an `answer` (a training set).

    Raises:
        DataError: The file is unreadable or breaks a rule, or holds no answer.
    """
    counts: Counter[str] = Counter()
    for where, item in numbered(path):
        answer = item if isinstance(item, str) else field(item, "answer", str, where)
        counts[text(answer, "answer", where)] += 1
    if not counts:
        raise DataError(f"{path}: holds no answer: fetch it again")
    return [answer for answer, _ in counts.most_common()]


def evaluate_video_qa(
    config: Config,
    checkpoint: Path,
    data: Path,
    annotations: Path | None,
    mapping: Path | None,
    answers: Path | None,
    videos: Path,
    out: Path,
    tracker: Tracker,
) -> None:
    """Measure a model: accuracy in percent; of ActivityNet-QA also by type.

    Processes that torchrun started share the videos. Writes `predictions.json` too, in the form that
    `score_video_qa` reads.

    Args:
        config: `evaluate` is read, but for its candidates.
        checkpoint: Of a model for VQA.
        data: See `read_video_questions`.
        annotations: See `read_video_questions`.
        mapping: See `read_video_questions`.
        answers: See `read_answers`; without, the model writes its answers.
        videos: The folder of the videos.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: A file breaks a rule, or a video is missing, cut short or damaged.
    """
    questions, folder = read_video_questions(data, annotations, mapping), Videos(videos)
    candidates = None if answers is None else read_answers(answers)
    of_video: dict[Path, list[int]] = {}
    for number, question in enumerate(questions):
        of_video.setdefault(folder.find(question.video), []).append(number)
    model, tokenizer, _ = open_network(checkpoint, "vqa", config.threads)
    answerer = _Answerer(model, tokenizer, candidates, config)
    team, frames = Team(), Frames(list(of_video), NUM_FRAMES)
    mine = team.share(len(of_video), 1)
    watched = video_tokens(model, frames, config.evaluate.precision, mine)
    watched = track(watched, "answering", len(mine), "videos", shown=rank() == 0)
    answered: list[tuple[int, str]] = []
    asked_of = list(of_video.values())[mine.start : mine.stop]
    for tokens, numbers in zip(watched, asked_of, strict=True):
        asked = [questions[number].question for number in numbers]
        answered += zip(numbers, answerer(tokens, asked), strict=True)
    predicted = [answer for _, answer in sorted(team.gather(answered))]
    rows = [
        {"question_id": question.question_id, "answer": answer}
        for question, answer in zip(questions, predicted, strict=True)
    ]
    write_json(out / PREDICTIONS, rows)
    _report(config, questions, predicted, out, tracker)


def score_video_qa(
    config: Config,
    predictions: Path,
    data: Path,
    annotations: Path | None,
    out: Path,
    tracker: Tracker,
) -> None:
    """Score what another model gave: a JSON list of `question_id`, `answer`.

    Raises:
        DataError: A file breaks a rule, or predictions are missing, surplus, or stand twice.
    """
    questions = read_video_questions(data, annotations)
    given: dict[int | str, str] = {}
    keys: list[int | str] = []
    for where, item in numbered(predictions):
        key = field(item, "question_id", (int, str), where)
        assert isinstance(key, int | str)
        keys.append(key)
        given[key] = field(item, "answer", str, where)
    require_one_each(keys, [question.question_id for question in questions], predictions, data)
    predicted = [given[question.question_id] for question in questions]
    _report(config, questions, predicted, out, tracker)


class _Answerer:
    """Answers questions about one video at a time, some at once."""

    def __init__(
        self, model: Blip, tokenizer: Tokenizer, candidates: Sequence[str] | None, config: Config
    ) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, config.evaluate
        self._candidates = candidates
        if candidates is not None:
            self._texts = Texts(*tokenizer.encode(candidates, MAX_ANSWER_TOKENS))

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, questions: Sequence[str]) -> Iterator[str]:
        """Give the answers to questions about a video of (1, F * N, D) tokens."""
        size = self._settings.batch_size
        for start in range(0, len(questions), size):
            cleaned = [clean_question(q, QUESTION_WORDS) for q in questions[start : start + size]]
            asked = Texts(*self._tokenizer.encode(cleaned, QUESTION_TOKENS))
            with autocast(tokens.device, self._settings.precision):
                memory = encode_questions(self._model, tokens, asked)
                if self._candidates is None:
                    start_ids = self._tokenizer.prompt("")
                    written = generate(self._model, memory, start_ids, ANSWER)
                    answers = [self._tokenizer.decode(ids) for ids in written]
                else:
                    k = min(RANKED, len(self._candidates))
                    ranked = rank_answers(self._model, memory, self._texts, k)
                    answers = [self._candidates[best] for best in ranked.best.tolist()]
            yield from answers


def _report(
    config: Config,
    questions: Sequence[VideoQuestion],
    predicted: Sequence[str],
    out: Path,
    tracker: Tracker,
) -> None:
    right = exact_matches(predicted, [question.answer for question in questions])
    statistics: dict[str, Statistic] = {"accuracy": mean(100.0 * right)}
    kinds = [question.kind for question in questions if question.kind is not None]
    if kinds:
        statistics = {
            f"accuracy_{name}": mean(100.0 * right * adds, divides)
            for name, (adds, divides) in activitynet_shares(kinds).items()
        }
    table = pa.table(
        {
            "question_id": [str(question.question_id) for question in questions],
            "question": [question.question for question in questions],
            "answer": [question.answer for question in questions],
            "predicted": predicted,
            "right": right,
        }
    )
    report(config, TASK, table, statistics, {"questions": len(questions)}, out, tracker)


def _activitynet(data: Path, annotations: Path) -> list[VideoQuestion]:
    """Join questions and answers of ActivityNet-QA, in the order of the answers."""
    asked: dict[str, tuple[str, str]] = {}
    keys = []
    for where, item in numbered(data):
        keys.append(field(item, "question_id", str, where))
        words = question_text(field(item, "question", str, where), where)
        asked[keys[-1]] = field(item, "video_name", str, where), words
    rows = []
    for where, item in numbered(annotations):
        kind = field(item, "type", int, where)
        require(kind in TYPES, where, "type", kind, f"below {len(TYPES)}")
        rows.append(
            (field(item, "question_id", str, where), field(item, "answer", str, where), kind)
        )
    require_one_each(keys, [key for key, *_ in rows], data, annotations)
    return [
        VideoQuestion(key, (asked[key][0], f"v_{asked[key][0]}"), asked[key][1], answer, kind)
        for key, answer, kind in rows
    ]


def _read_mapping(path: Path) -> dict[int, str]:
    """Read the names of MSVD's videos by number."""
    names: dict[int, str] = {}
    for number, line in read_lines(path):
        name, _, video = line.strip().rpartition(" ")
        digits = video.removeprefix("vid")
        known = name and digits.isdecimal() and digits.isascii()
        require(
            known, f"{path}, line {number}", "line", line, "a name, a space, and vid7 or the like"
        )
        names[int(digits)] = name
    return names
