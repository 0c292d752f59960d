"""Two arms of an experiment against each other, image by image: what changed, how sure it is."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip.config import Config
from blip.errors import DataError
from blip.evaluate import captioning, retrieval
from blip.evaluate.bootstrap import differences, plain
from blip.files import write_json
from blip.tracker import Tracker

TASKS = {"retrieval": retrieval, "captioning": captioning}

_TITLES = {
    "tr_r1": "text R@1",
    "tr_r5": "text R@5",
    "tr_r10": "text R@10",
    "tr_mean": "text R mean",
    "ir_r1": "image R@1",
    "ir_r5": "image R@5",
    "ir_r10": "image R@10",
    "ir_mean": "image R mean",
    "r_mean": "R mean",
    "bleu4": "BLEU-4",
    "cider": "CIDEr",
    "rouge_l": "ROUGE-L",
}


def compare(config: Config, baseline: Path, candidate: Path, out: Path, tracker: Tracker) -> None:
    """Compare two arms by a paired bootstrap over the test images.

    Writes `metrics.json`: for every task and metric baseline, candidate, their difference
    (candidate minus baseline) with its interval, and p.

    Args:
        config: `evaluate` gives the resamples and the confidence.
        baseline: Results of one arm, with `retrieval/` and `captioning/` or one of them.
        candidate: Results of the other, with the same tasks on the same images.
        out: The folder to write into.
        tracker: Told the differences.

    Raises:
        DataError: A task or an image is in one arm and not in the other.
    """
    document: dict[str, Any] = {}
    for task in _common_tasks(baseline, candidate):
        ours, theirs = (_read(arm / task, TASKS[task].PER_IMAGE) for arm in (baseline, candidate))
        _check_images(ours, theirs, baseline / task, candidate / task)
        found = differences(
            TASKS[task].statistics(ours),
            TASKS[task].statistics(theirs),
            len(ours),
            config.evaluate.bootstrap_samples,
            config.evaluate.confidence,
            config.seed,
        )
        document[task] = {name: plain(difference) for name, difference in found.items()}
        tracker.metrics({f"{task}/{name}_difference": d.difference for name, d in found.items()})
    write_json(out / "metrics.json", document)


def format_comparison(document: dict[str, Any], baseline: str, candidate: str) -> str:
    """Give a comparison's `metrics.json` as a table for a terminal.

    Args:
        document: What `compare` wrote.
        baseline: Name of the baseline's column.
        candidate: Name of the candidate's column.
    """
    rows = [("metric", baseline, candidate, "difference", "interval", "p")]
    for metrics in document.values():
        for name in sorted(metrics, key=list(_TITLES).index):
            d = metrics[name]
            rows.append(
                (
                    _TITLES[name],
                    f"{d['baseline']:.1f}",
                    f"{d['candidate']:.1f}",
                    f"{d['difference']:+.1f}",
                    f"[{d['low']:+.1f}, {d['high']:+.1f}]",
                    f"{d['p']:.3f}",
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _common_tasks(baseline: Path, candidate: Path) -> list[str]:
    found = []
    for task in TASKS:
        has = [(arm / task).is_dir() for arm in (baseline, candidate)]
        if all(has):
            found.append(task)
        elif any(has):
            missing = (baseline, candidate)[has.index(False)] / task
            raise DataError(f"{missing}: does not exist, the other arm has it: evaluate both")
    if not found:
        raise DataError(
            f"{baseline} and {candidate}: hold no {' or '.join(TASKS)} results: evaluate both first"
        )
    return found


def _read(folder: Path, schema: pa.Schema) -> pa.Table:
    """Read the values of every image, in the order of their keys."""
    path = folder / "per_example.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read: {cause}: evaluate this arm again") from None
    if not set(schema.names) <= set(table.schema.names):
        raise DataError(f"{path}: has columns {table.schema.names}, expected {schema.names}")
    return table.select(schema.names).sort_by("key")


def _check_images(ours: pa.Table, theirs: pa.Table, baseline: Path, candidate: Path) -> None:
    for has, lacks, folder, other in (
        (ours, theirs, candidate, baseline),
        (theirs, ours, baseline, candidate),
    ):
        missing = has["key"].filter(pc.invert(pc.is_in(has["key"], lacks["key"])))
        if len(missing):
            raise DataError(
                f"{folder}: lacks {len(missing)} images that {other} has, the first is "
                f"{missing[0]}: evaluate both arms on the same test set"
            )
