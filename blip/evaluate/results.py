"""What every evaluation leaves: its metrics with intervals, and the table they can be computed from again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from blip.config import Config
from blip.data.dataset import write_table
from blip.evaluate.bootstrap import Statistic, intervals, plain
from blip.files import write_json
from blip.tracker import Tracker

TABLE = "per_example.parquet"
SUBMISSION = "submission.json"  # what a server scores; of those tasks that have one


def report(
    config: Config,
    task: str,
    table: pa.Table,
    statistics: Mapping[str, Statistic],
    counts: Mapping[str, float],
    out: Path,
    tracker: Tracker,
) -> None:
    """Write `metrics.json` and `per_example.parquet`, and tell the tracker both.

    Args:
        config: `evaluate` gives the resamples and the confidence of the intervals.
        task: Names the metrics: `metrics.json` is `{task: {metric: {"value", "low", "high"}}}`. A
            metric or count of a part of the examples is named `part/metric`, and lies in `part`.
        table: One row an example, what the statistics resample.
        statistics: The metrics.
        counts: Beside them in the file: how many images, texts, questions.
        out: The folder.
        tracker: Told the values as `task/metric`, the ends of the intervals as `task/metric_low` and
            `task/metric_high`, and given the files.
    """
    write_table(out / TABLE, table)
    found = intervals(
        statistics,
        len(table),
        config.evaluate.bootstrap_samples,
        config.evaluate.confidence,
        config.seed,
    )
    values = {name: plain(interval) for name, interval in found.items()}
    write_json(out / "metrics.json", {task: _nested({**values, **counts})})
    tracker.metrics({f"{task}/{name}": interval.value for name, interval in found.items()})
    tracker.metrics({f"{task}/{name}_low": interval.low for name, interval in found.items()})
    tracker.metrics({f"{task}/{name}_high": interval.high for name, interval in found.items()})
    tracker.artifact(out / TABLE)
    tracker.artifact(out / "metrics.json")


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put what is named `part/name` into a document of that part."""
    document: dict[str, Any] = {}
    for name, value in values.items():
        part, slash, rest = name.partition("/")
        if slash:
            document.setdefault(part, {})[rest] = value
        else:
            document[name] = value
    return document
