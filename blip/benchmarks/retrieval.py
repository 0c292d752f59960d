"""Retrieval on COCO and Flickr30k by score matrices that somebody else made (BLIP.md 5.1)."""

from pathlib import Path

import pyarrow as pa

from blip.benchmarks.records import read_matrices
from blip.config import Config
from blip.data.annotations import read_retrieval_set
from blip.errors import DataError
from blip.evaluate.results import report
from blip.evaluate.retrieval import PER_IMAGE, statistics
from blip.metrics.ranking import best_ranks, ranks
from blip.tracker import Tracker


def score_retrieval(
    config: Config, predictions: Path, data: Path, out: Path, tracker: Tracker
) -> None:
    """Score what a model gave, as `evaluate_retrieval` reports a model of ours.

    Args:
        config: `evaluate` gives the intervals.
        predictions: A .npz with `i2t` (images x texts) and `t2i` (texts x images), in the order of
            the file; a higher score is a better match.
        data: A JSON file of `{"image", "caption": [...]}`.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: A file is unreadable or breaks a rule, or a matrix is missing, of another size,
            or holds what is not a number.
    """
    found = read_retrieval_set(data)
    size = len(found.images), len(found.texts)
    i2t, t2i = read_matrices(predictions, {"i2t": size, "t2i": size[::-1]}, data)
    try:
        tr_rank = best_ranks(i2t, found.own_texts())
        ir_rank = ranks(t2i, found.owner)
    except DataError as error:
        raise DataError(f"{predictions}: {error}") from None
    ir_ranks = [ir_rank[own].tolist() for own in found.own_texts()]
    table = pa.table([list(found.images), tr_rank, ir_ranks], schema=PER_IMAGE)
    counts = {"images": size[0], "texts": size[1]}
    report(config, "retrieval", table, statistics(table), counts, out, tracker)
