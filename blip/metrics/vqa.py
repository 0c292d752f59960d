"""The accuracy of VQA v2, equal to the official evaluator's to the last quirk (BLIP.md 5.3).

An answer counts as many thirds as there are other people who gave it, three at most, averaged over
the people. Where they do not all say the same, answers are normalised first; where they do, nothing
is, so that case, digits and articles count there.

Source: Antol et al. 2015, and the evaluation code of GT-Vision-Lab/VQA.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from blip.metrics.ids import require_one_each

PLACES = 2  # the official scores are percent, rounded so

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = int(re.UNICODE)  # the reference hands the flag over where the count belongs: 32

_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""


class Asked(NamedTuple):
    """A question that people answered.

    Attributes:
        question_id: Unique in its set.
        answers: Of each person, as written; ten in VQA v2.
        question_type: The words it begins with; empty where they are not told.
        answer_type: `yes/no`, `number` or `other`; empty where it is not told.
    """

    question_id: int
    answers: tuple[str, ...]
    question_type: str = ""
    answer_type: str = ""


def score(
    predictions: Iterable[tuple[int, str]], asked: Sequence[Asked], where: object, of: object
) -> list[float]:
    """Give the accuracy of every question, 0 to 1, in the order of `asked`.

    Args:
        predictions: Question ids and answers, in any order.
        asked: All questions of the set.
        where: Names the source of the predictions in messages.
        of: Names that of the questions.

    Raises:
        DataError: Predictions are missing, are surplus or stand twice; the questions are named.
    """
    pairs = list(predictions)
    require_one_each((key for key, _ in pairs), (q.question_id for q in asked), where, of)
    said = dict(pairs)
    return [accuracy(said[question.question_id], question.answers) for question in asked]


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Give the accuracy of one answer, 0 to 1, against those of one person or more."""
    given, said = [_trim(answer) for answer in answers], _trim(prediction)
    if len(set(given)) > 1:
        given, said = [normalise(answer) for answer in given], normalise(said)
    matches = given.count(said)
    return sum(min(1.0, (matches - (answer == said)) / 3) for answer in given) / len(given)


def summarise(accuracies: Sequence[float], asked: Sequence[Asked]) -> dict[str, object]:
    """Give the official summary, in rounded percent: `overall`, `perQuestionType`, `perAnswerType`."""
    by_question: defaultdict[str, list[float]] = defaultdict(list)
    by_answer: defaultdict[str, list[float]] = defaultdict(list)
    for value, question in zip(accuracies, asked, strict=True):
        by_question[question.question_type].append(value)
        by_answer[question.answer_type].append(value)
    return {
        "overall": _mean(accuracies),
        "perQuestionType": _means(by_question),
        "perAnswerType": _means(by_answer),
    }


@lru_cache(maxsize=2**16)
def normalise(text: str) -> str:
    """Strip punctuation and articles, lower the case, write numbers in digits and mend contractions."""
    words = (NUMBERS.get(word, word) for word in strip_punctuation(text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def strip_punctuation(text: str) -> str:
    """Drop marks that stand beside a space, or all where a number has a comma; space for others.

    A period goes unless a digit follows.
    """
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        if mark in text:
            dropped = in_number or f"{mark} " in text or f" {mark}" in text
            stripped = stripped.replace(mark, "" if dropped else " ")
    return _PERIOD.sub("", stripped, count=_MOST_PERIODS)


def _contractions() -> dict[str, str]:
    """Give the misspellings that are mended: each lacks one apostrophe of a contraction."""
    mended = {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTIONS.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    return mended | {"somebody'd": "somebodyd"}  # which the reference has the wrong way round


CONTRACTIONS: Mapping[str, str] = _contractions()


def _trim(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _mean(values: Sequence[float]) -> float:
    return round(100 * sum(values) / len(values), PLACES)


def _means(groups: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: _mean(values) for name, values in groups.items()}
