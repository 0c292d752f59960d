"""VisDial v1.0: a model that ranks answers within a dialog, or ranks that are there, scored officially.

BLIP.md 5.5. The code of this task was never released; known are the paper's description and the
forward pass that its author showed. What they say: image tokens and the states of a context, read
without the image, are one memory; the text encoder reads the dialog with a candidate ([ENC] first)
and that memory; the candidates are ranked by the logit of a match. They leave open, and we choose:

- the context is the caption: in the published pass one context serves all rounds of a dialog;
- the text is the rounds before, the question and the candidate, joined by spaces, each cleaned as a
  caption is, and a question ends in a question mark;
- a text that is longer than the model reads loses its oldest rounds, the same for all candidates.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from blip.benchmarks.records import read_predictions
from blip.config import Config
from blip.data.dialogs import OPTIONS, Dialog, DialogSet, Key, Round
from blip.data.text import Tokenizer, clean_caption
from blip.data.text_records import field
from blip.distributed import Team, rank
from blip.errors import CheckpointError, DataError
from blip.evaluate.bootstrap import Statistic, mean
from blip.evaluate.evaluation_set import Photos, require_photos
from blip.evaluate.features import image_tokens
from blip.evaluate.network import Network, open_network, require_finite
from blip.evaluate.results import SUBMISSION, report
from blip.files import write_text
from blip.metrics.visdial import ndcg, require_ranks, sparse, to_ranks
from blip.models.device import autocast
from blip.models.matching import Texts, match_texts
from blip.models.med import Memory
from blip.progress import Progress
from blip.tracker import Tracker

log = logging.getLogger(__name__)

TASK = "visdial"
PER_DIALOG = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("ranks", pa.list_(pa.int64()), nullable=False),  # of the answers; none in a test
        pa.field("ndcg", pa.list_(pa.float64()), nullable=False),  # of the rounds with relevance
    ]
)


def evaluate_visdial(
    config: Config, checkpoint: Path, dialogs: DialogSet, photos: Path, out: Path, tracker: Tracker
) -> None:
    """Let a model rank the answers of dialogs, and score it where the right ones are told.

    Writes `submission.json` as the server wants it, and what `score_visdial` writes.

    Args:
        config: `evaluate` is read.
        checkpoint: Of a model that matches.
        dialogs: What to rank.
        photos: The folder that the names of the photos are relative to.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        CheckpointError: Image and text tokens of the model are not equally wide.
        DataError: A photo is missing or cannot be decoded.
    """
    require_photos(photos / dialogs.photo(dialog) for dialog in dialogs.dialogs)
    network = open_network(checkpoint, "matching", config.threads)
    sizes = network.model.config
    if sizes.vision.width != sizes.text.width:
        raise CheckpointError(
            f"{checkpoint}: image tokens are {sizes.vision.width} wide and text tokens "
            f"{sizes.text.width}, and VisDial reads both as one: name another checkpoint"
        )
    scores = score_answers(network, config, dialogs, photos)
    ranks = {key: to_ranks(own).tolist() for key, own in scores.items()}
    write_text(out / SUBMISSION, _submission(ranks))
    tracker.artifact(out / SUBMISSION)
    _report(config, ranks, dialogs, out, tracker)


def score_visdial(
    config: Config, predictions: Path, dialogs: DialogSet, out: Path, tracker: Tracker
) -> None:
    """Score ranks that are there: MRR, R@1/5/10 and NDCG in percent, and the mean rank.

    Writes `metrics.json` with bootstrap intervals over dialogs, and `per_example.parquet`
    (`PER_DIALOG`).

    Args:
        config: `evaluate` says how to resample.
        predictions: `[{"image_id", "round_id", "ranks"}]`, as the server takes it.
        dialogs: What was ranked.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: The file breaks a rule, or the ranks are not of each round with options.
    """
    ranks = read_predictions(predictions, dialogs.keys, dialogs.source, _parse_ranks)
    _report(config, dict(zip(dialogs.keys, ranks, strict=True)), dialogs, out, tracker)


@torch.inference_mode()
def score_answers(
    network: Network, config: Config, dialogs: DialogSet, photos: Path
) -> dict[Key, NDArray[np.float32]]:
    """Score the options of every round that has any; a photo is encoded and projected once.

    Processes that torchrun started share the dialogs.

    Args:
        network: A model that matches, whose image and text tokens are equally wide.
        config: `evaluate` gives how many photos, and texts, are read at once.
        dialogs: What to rank.
        photos: The folder of the photos.

    Returns:
        The match logits of the options, by round.

    Raises:
        CheckpointError: A score is not a number.
    """
    model, tokenizer, device = network
    size, precision, team = config.evaluate.batch_size, config.evaluate.precision, Team()
    images = Photos([photos / dialogs.photo(dialog) for dialog in dialogs.dialogs])
    mine = team.share(len(images), size)
    progress = Progress("ranking", len(mine), "dialogs", shown=rank() == 0)
    scores: dict[Key, NDArray[np.float32]] = {}
    for rows, tokens in image_tokens(model, images, size, precision, mine):
        some = dialogs.dialogs[rows.start : rows.stop]
        captions = [clean_caption(dialog.caption, sys.maxsize) for dialog in some]
        encoded = tokenizer.encode(captions, model.config.text.max_positions)
        ids, mask = (each.to(device) for each in encoded)
        with autocast(device, precision):
            memory = model.project_captioned(tokens, model.encode_text(ids, mask), mask)
            for place, dialog in enumerate(some):
                own = memory.select(slice(place, place + 1))
                scores |= _score_dialog(network, dialog, own, size)
                progress.advance()
    return dict(team.gather(list(scores.items())))


def _score_dialog(
    network: Network, dialog: Dialog, memory: Memory, batch_size: int
) -> dict[Key, NDArray[np.float32]]:
    model, tokenizer, _ = network
    scores: dict[Key, NDArray[np.float32]] = {}
    for image_id, number in dialog.ranked:
        before = dialog.rounds[:number]
        texts = candidate_texts(tokenizer, before, model.config.text.max_positions)
        logits = match_texts(model, texts, torch.arange(len(texts)), memory, None, batch_size)
        require_finite(logits, f"image {image_id}, round {number},")
        scores[image_id, number] = logits[:, 1].cpu().numpy()
    return scores


def candidate_texts(tokenizer: Tokenizer, rounds: Sequence[Round], max_tokens: int) -> Texts:
    """Give what is read of each option of the last round: the dialog until then, and the option.

    Args:
        tokenizer: Makes the tokens.
        rounds: All until the one that is ranked.
        max_tokens: A text may have, [CLS] and [SEP] included: the oldest rounds go, and of what is
            then too long still, the end.
    """
    *before, last = rounds
    options = [clean_caption(option, sys.maxsize) for option in last.options]
    ids, mask = tokenizer.encode(options, max_tokens)
    asked = [_question(last), *(f"{_question(each)} {_answer(each)}" for each in reversed(before))]
    lengths = tokenizer.encode(asked, sys.maxsize)[1].sum(dim=1) - 2
    kept = max(1, int((lengths.cumsum(dim=0) + ids.shape[1] <= max_tokens).sum()))
    room = max(2, max_tokens - ids.shape[1] + 2)
    prefix, seen = tokenizer.encode([" ".join(reversed(asked[:kept]))], room)
    return Texts(
        torch.cat([prefix[:, :-1].expand(len(ids), -1), ids[:, 1:]], dim=1),
        torch.cat([seen[:, :-1].expand(len(ids), -1), mask[:, 1:]], dim=1),
    )


def statistics(per_dialog: pa.Table) -> dict[str, Statistic]:
    """Give the metrics of a `PER_DIALOG` table as statistics over its dialogs; none of a test."""
    found: dict[str, Statistic] = {}
    ranks = [np.array(own, dtype=np.float64) for own in per_dialog["ranks"].to_pylist()]
    if any(map(len, ranks)):
        each = [sparse(own) for own in ranks]
        for name in ("mrr", "r1", "r5", "r10", "mean_rank"):
            scale = 1.0 if name == "mean_rank" else 100.0
            sums = [scale * scores[name].sum() for scores in each]
            found[name] = mean(sums, [len(own) for own in ranks])
    gains = per_dialog["ndcg"].to_pylist()
    if any(gains):
        found["ndcg"] = mean([100.0 * sum(own) for own in gains], [len(own) for own in gains])
    return found


def _report(
    config: Config,
    ranks: Mapping[Key, Sequence[int]],
    dialogs: DialogSet,
    out: Path,
    tracker: Tracker,
) -> None:
    answers, gains = [], []
    for dialog in dialogs.dialogs:
        rights = {key: each.right for key, each in dialog.ranked.items()}
        answers.append([ranks[key][right] for key, right in rights.items() if right is not None])
        judged = [key for key in rights if key in dialogs.relevance]
        gains.append([ndcg(ranks[key], dialogs.relevance[key]) for key in judged])
    ids = [dialog.image_id for dialog in dialogs.dialogs]
    table = pa.table([ids, answers, gains], schema=PER_DIALOG)
    counts = {
        "dialogs": len(ids),
        "rounds": len(ranks),
        "rounds_with_answer": sum(map(len, answers)),
        "rounds_with_relevance": sum(map(len, gains)),
    }
    if not counts["rounds_with_answer"]:
        log.warning("%s tells no right answers: there are ranks and no score", dialogs.source)
    report(config, TASK, table, statistics(table), counts, out, tracker)


def _submission(ranks: Mapping[Key, Sequence[int]]) -> str:
    rows = (
        f'{{"image_id": {image_id}, "round_id": {number}, "ranks": {list(own)}}}'
        for (image_id, number), own in ranks.items()
    )
    return "[" + ",\n".join(rows) + "]\n"


def _question(each: Round) -> str:
    text = clean_caption(each.question, sys.maxsize)
    return text if text.endswith("?") else f"{text}?"


def _answer(each: Round) -> str:
    return clean_caption(each.answer, sys.maxsize)


def _parse_ranks(row: Any, where: str) -> tuple[Key, list[int]]:
    ranks = field(row, "ranks", list, where)
    if not all(isinstance(rank, int) for rank in ranks):
        raise DataError(f"{where}: ranks are {ranks!r:.80}, they must be int: mend the record")
    require_ranks(ranks, OPTIONS, where)
    return (field(row, "image_id", int, where), field(row, "round_id", int, where)), ranks
