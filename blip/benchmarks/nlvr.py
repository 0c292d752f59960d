"""NLVR2: a model that judges statements about two photos, or judgements that are there, scored officially.

BLIP.md 5.4. Statements come as the benchmark has them (`dev.json`, `test1.json`: one object a line)
or as salesforce/BLIP does (`nlvr_dev.json`, `nlvr_test.json`). The reference lets the two photos of
half of the statements change places, as in training; here they stay, so that a test has one result.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import torch

from blip.benchmarks.records import require_unique, words
from blip.config import Config
from blip.data.annotations import Statement, read_statements
from blip.data.text import clean_caption
from blip.data.text_records import field, is_json_list, json_lines, read_lines, require
from blip.distributed import Team, rank
from blip.errors import ConfigError, DataError
from blip.evaluate.bootstrap import Statistic, mean
from blip.evaluate.evaluation_set import Photos, require_photos
from blip.evaluate.features import image_tokens
from blip.evaluate.network import Network, open_network, require_finite
from blip.evaluate.results import report
from blip.files import write_text
from blip.metrics.ids import name_some
from blip.metrics.nlvr import group_of, judge
from blip.models.device import autocast
from blip.models.matching import Texts
from blip.progress import Progress
from blip.tracker import Tracker

log = logging.getLogger(__name__)

TASK = "nlvr"
PREDICTIONS = "predictions.csv"  # what the official script reads
STATEMENT_WORDS = 40  # BLIP.md 5.4; of tokens the reference takes all

_IDENTIFIER = re.compile(r"[a-z0-9]+-\d+-\d+-\d+", re.ASCII)  # split, set, pair, sentence
_PHOTO = re.compile(r"([a-z0-9]+)-(\d+)-(\d+)-img[01]", re.ASCII)

PER_SENTENCE = pa.schema(
    [
        pa.field("sentence", pa.string(), nullable=False),  # its identifier
        pa.field("identifiers", pa.list_(pa.string()), nullable=False),  # of its examples
        pa.field("predictions", pa.list_(pa.string()), nullable=False),
        pa.field("right", pa.list_(pa.bool_()), nullable=False),
        pa.field("subsets", pa.list_(pa.list_(pa.string())), nullable=False),  # that each is in
    ]
)


@dataclass(frozen=True)
class StatementSet:
    """Statements about two photos.

    Attributes:
        source: The file, for messages.
        statements: In the order of the file.
        identifiers: Of each; made up from photo and record where the file tells none.
        sentences: The identifier of the sentence of each, which is about several pairs.
        subsets: The parts of the set that are scored by themselves: the identifiers of each.
        official: Whether the identifiers are those of the benchmark.
    """

    source: Path
    statements: Sequence[Statement]
    identifiers: Sequence[str]
    sentences: Sequence[str]
    subsets: Mapping[str, frozenset[str]]
    official: bool


def open_statements(
    data: Path, balanced: Path | None = None, categories: Path | None = None
) -> StatementSet:
    """Read statements.

    Args:
        data: The official file, or a list as salesforce/BLIP has it.
        balanced: The official file of the balanced part of `data`; it and the rest are then scored
            by themselves.
        categories: The official file of sentences and what each takes to be understood.

    Raises:
        ConfigError: Parts are asked for of a file without the official identifiers.
        DataError: A file cannot be read or breaks a rule, or they do not belong together.
    """
    official = not is_json_list(data)
    if not official and (balanced or categories):
        raise ConfigError(
            f"{data} has no official identifiers, by which parts are told: give the file of the "
            "benchmark, e.g. dev.json"
        )
    identifiers, statements = _read_official(data) if official else _read_blip(data)
    if not statements:
        raise DataError(f"{data}: holds no statement: fetch it again")
    require_unique(identifiers, data)
    sentences = [
        group_of(identifier) if official else _sentence_of(statement)
        for identifier, statement in zip(identifiers, statements, strict=True)
    ]
    subsets: dict[str, frozenset[str]] = {}
    if balanced is not None:
        chosen = frozenset(_read_official(balanced)[0])
        _require_part(chosen, identifiers, balanced, data)
        subsets = {"balanced": chosen, "unbalanced": frozenset(identifiers) - chosen}
    if categories is not None:
        subsets |= _find_categories(categories, identifiers, statements, data)
    return StatementSet(data, statements, identifiers, sentences, subsets, official)


def evaluate_nlvr(
    config: Config,
    checkpoint: Path,
    statements: StatementSet,
    photos: Path,
    out: Path,
    tracker: Tracker,
) -> None:
    """Let a model judge statements, and score it.

    Writes what `score_nlvr` writes, and `predictions.csv` as the official script reads it, if the
    identifiers are the official ones.

    Args:
        config: `evaluate` is read.
        checkpoint: Of a model with the parts `nlvr`.
        statements: What to judge.
        photos: The folder that the names of the photos are relative to.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: A photo is missing or cannot be decoded.
    """
    names = dict.fromkeys(name for each in statements.statements for name in each.images)
    require_photos(photos / name for name in names)
    network = open_network(checkpoint, "nlvr", config.threads)
    said = map(str, judge_statements(network, config, statements.statements, photos))
    predictions = dict(zip(statements.identifiers, said, strict=True))
    if statements.official:
        lines = (f"{identifier},{said}\n" for identifier, said in predictions.items())
        write_text(out / PREDICTIONS, "".join(lines))
        tracker.artifact(out / PREDICTIONS)
    _report(config, list(predictions.items()), checkpoint, statements, out, tracker)


def score_nlvr(
    config: Config, predictions: Path, statements: StatementSet, out: Path, tracker: Tracker
) -> None:
    """Score judgements that are there: accuracy and consistency, in percent.

    Writes `metrics.json` with bootstrap intervals over sentences, and `per_example.parquet`
    (`PER_SENTENCE`).

    Args:
        config: `evaluate` says how to resample.
        predictions: Lines of `identifier,prediction`.
        statements: Of an official file.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        ConfigError: The statements have no official identifiers.
        DataError: The file breaks a rule, or the predictions are not one for each statement.
    """
    if not statements.official:
        raise ConfigError(
            f"{statements.source} has no official identifiers, by which predictions go: give the "
            "file of the benchmark, e.g. dev.json"
        )
    pairs = _read_predictions(predictions)
    _report(config, pairs, predictions, statements, out, tracker)


@torch.inference_mode()
def judge_statements(
    network: Network, config: Config, statements: Sequence[Statement], photos: Path
) -> list[bool]:
    """Judge statements, those about a pair of photos together: it is encoded and projected once.

    Processes that torchrun started share the pairs.

    Args:
        network: A model with the parts `nlvr`.
        config: `evaluate` gives how many pairs, and statements, are read at once.
        statements: In any order.
        photos: The folder of the photos.

    Returns:
        Whether each is true.

    Raises:
        CheckpointError: A score is not a number.
    """
    model, tokenizer, device = network
    by_pair: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for number, statement in enumerate(statements):
        by_pair[statement.images].append(number)
    own_of = list(by_pair.values())
    size, precision, team = config.evaluate.batch_size, config.evaluate.precision, Team()
    mine = team.share(2 * len(by_pair), 2 * size)
    progress = Progress("judging", len(mine) // 2, "pairs", shown=rank() == 0)
    verdicts: list[tuple[int, bool]] = []
    images = Photos([photos / name for pair in by_pair for name in pair])
    for rows, tokens in image_tokens(model, images, 2 * size, precision, mine):
        own = own_of[rows.start // 2 : rows.stop // 2]
        numbers = torch.tensor([number for each in own for number in each])
        owner = torch.repeat_interleave(torch.tensor([len(each) for each in own]))
        texts = [clean_caption(statements[n].sentence, STATEMENT_WORDS) for n in numbers.tolist()]
        encoded = Texts(*tokenizer.encode(texts, model.config.text.max_positions))
        readers = max(map(len, own)) * encoded.token_ids.shape[1]
        with autocast(device, precision):
            memory = model.project_images(tokens.reshape(len(own), -1, tokens.shape[2]), readers)
            for places, ids, mask in encoded.batches(torch.arange(len(numbers)), size):
                index = owner[places].to(device)
                logits = model.classify(ids.to(device), mask.to(device), memory, index)
                require_finite(logits, "statements")
                said = (logits[:, 1] > logits[:, 0]).tolist()
                verdicts += zip(numbers[places].tolist(), said, strict=True)
        progress.advance(len(own))
    return [verdict for _, verdict in sorted(team.gather(verdicts))]


def statistics(per_sentence: pa.Table) -> dict[str, Statistic]:
    """Give the metrics of a `PER_SENTENCE` table, in percent, as statistics over its sentences."""
    right = per_sentence["right"].to_pylist()
    subsets = per_sentence["subsets"].to_pylist()
    sizes = np.array([len(each) for each in right])
    hits = np.array([sum(each) for each in right])
    found = {"accuracy": mean(100.0 * hits, sizes), "consistency": mean(100.0 * (hits == sizes))}
    for name in sorted({name for each in subsets for names in each for name in names}):
        inside = [[name in names for names in each] for each in subsets]
        both = zip(right, inside, strict=True)
        hits = np.array([sum(r and i for r, i in zip(*pair, strict=True)) for pair in both])
        found[f"accuracy_{name}"] = mean(100.0 * hits, [sum(each) for each in inside])
    return found


def _report(
    config: Config,
    predictions: Sequence[tuple[str, str]],
    source: Path,
    statements: StatementSet,
    out: Path,
    tracker: Tracker,
) -> None:
    labels = [statement.label for statement in statements.statements]
    right = judge(predictions, statements.identifiers, labels, source, statements.source)
    odd = [key for key, said in predictions if said.lower() not in ("true", "false")]
    if odd:
        log.warning(
            "%s: of %s the prediction is neither true nor false, which counts as wrong",
            source,
            name_some(odd),
        )
    said = dict(predictions)
    by_sentence: defaultdict[str, list[int]] = defaultdict(list)
    for number, sentence in enumerate(statements.sentences):
        by_sentence[sentence].append(number)
    inside: defaultdict[str, list[str]] = defaultdict(list)
    for name, chosen in statements.subsets.items():
        for identifier in chosen:
            inside[identifier].append(name)
    names = statements.identifiers
    columns = [
        list(by_sentence),
        [[names[n] for n in own] for own in by_sentence.values()],
        [[said[names[n]] for n in own] for own in by_sentence.values()],
        [[right[n] for n in own] for own in by_sentence.values()],
        [[inside[names[n]] for n in own] for own in by_sentence.values()],
    ]
    table = pa.table(columns, schema=PER_SENTENCE)
    counts = {"examples": len(right), "sentences": len(table), "unreadable_predictions": len(odd)}
    report(config, TASK, table, statistics(table), counts, out, tracker)


def _read_official(path: Path) -> tuple[list[str], list[Statement]]:
    """Read lines of `identifier`, `sentence`, `label`; the identifier names the photos."""
    identifiers, statements = [], []
    for where, row in json_lines(path):
        identifier = field(row, "identifier", str, where)
        label = field(row, "label", str, where)
        form = _IDENTIFIER.fullmatch(identifier)
        require(form, where, "identifier", identifier, "of the form split-set-pair-sentence")
        require(label in ("True", "False"), where, "label", label, '"True" or "False"')
        pair = identifier.rpartition("-")[0]
        folder = identifier.partition("-")[0]
        images = (f"{folder}/{pair}-img0.png", f"{folder}/{pair}-img1.png")
        sentence = words(field(row, "sentence", str, where), "sentence", where)
        identifiers.append(identifier)
        statements.append(Statement(sentence, images, label == "True"))
    return identifiers, statements


def _read_blip(path: Path) -> tuple[list[str], list[Statement]]:
    """Read a list as salesforce/BLIP has it, and number the statements about each pair of photos."""
    identifiers, statements = [], []
    seen: Counter[str] = Counter()
    for number, statement in enumerate(read_statements(path), 1):
        where = f"{path}, record {number}"
        words(statement.sentence, "sentence", where)
        pair = "-".join(_photo_parts(statement, where))
        seen[pair] += 1
        identifiers.append(f"{pair}/{seen[pair]}")
        statements.append(statement)
    return identifiers, statements


def _sentence_of(statement: Statement) -> str:
    """Name the sentence of a statement that has no identifier: a set has each sentence once."""
    split, number, _ = _photo_parts(statement, "")
    return f"{split}-{number}/{statement.sentence}"


def _photo_parts(statement: Statement, where: str) -> tuple[str, str, str]:
    """Give split, set and pair in the name of the first photo."""
    parts = _PHOTO.fullmatch(PurePosixPath(statement.images[0]).stem)
    rule = "named split-set-pair-img0 as in the benchmark, which tells the statements of a sentence"
    require(parts, where, "image", statement.images[0], rule)
    assert parts
    split, number, pair = parts.groups()
    return split, number, pair


def _require_part(
    part: frozenset[str], identifiers: Sequence[str], source: Path, data: Path
) -> None:
    surplus = part.difference(identifiers)
    if surplus:
        raise DataError(
            f"{source}: {name_some(sorted(surplus))} is not in {data}: give two files of one split"
        )


def _find_categories(
    path: Path, identifiers: Sequence[str], statements: Sequence[Statement], data: Path
) -> dict[str, frozenset[str]]:
    """Give the statements of each category, whose sentences the file lists.

    A block is a sentence and lines of `* category`; blank lines stand between blocks.
    """
    by_sentence: defaultdict[str, list[str]] = defaultdict(list)
    for identifier, statement in zip(identifiers, statements, strict=True):
        by_sentence[statement.sentence.strip()].append(identifier)
    found: defaultdict[str, set[str]] = defaultdict(set)
    sentence = None
    for number, line in read_lines(path):
        star, category = line.strip()[:1] == "*", line.strip().removeprefix("*").strip()
        if not star:
            sentence = line.strip()
        elif sentence is None or not category:
            raise DataError(
                f"{path}, line {number}: {line!r:.80} is not a category behind a sentence: mend it"
            )
        else:
            found[category.replace(" ", "_")].update(by_sentence.get(sentence, ()))
    if not any(found.values()):
        raise DataError(f"{path}: no sentence of it is in {data}: give two files of one split")
    return {name: frozenset(chosen) for name, chosen in found.items() if chosen}


def _read_predictions(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in read_lines(path):
        row = line.strip().split(",")
        if len(row) != 2:
            raise DataError(
                f"{path}, line {number}: {line!r:.80} is not of the form identifier,prediction: "
                "mend or remove the line"
            )
        pairs.append((row[0], row[1]))
    return pairs
