"""Shows what an evaluation found example by example, as a table in MLflow."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip.errors import DataError
from blip.files import write_text

SOURCE = "per_example.parquet"
TABLE = "per_example.json"

ROWS = 1000  # at most: a page that people read; the whole table is the stage's output


def write_example_table(source: Path, out: Path) -> None:
    """Write `per_example.json`: all rows of an evaluation's table, or `ROWS` spread over them.

    Equal tables give equal files, so that logging one again changes nothing.

    Args:
        source: The `per_example.parquet`.
        out: The folder to write into.

    Raises:
        DataError: The table cannot be read.
    """
    try:
        table = pq.read_table(source)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: cannot be read as Parquet: {reason}") from None
    if len(table) > ROWS:
        table = table.take([row * len(table) // ROWS for row in range(ROWS)])
    columns = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    document = {
        "columns": table.column_names,
        "data": [list(row) for row in zip(*columns, strict=True)],
    }
    write_text(out / TABLE, json.dumps(document, ensure_ascii=False, allow_nan=False))


def _cell(value: Any) -> Any:
    """Give a value as MLflow's table shows it: lists as text, and nothing for what is no number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    plain = value is None or isinstance(value, bool | int | str)
    return value if plain else json.dumps(value, ensure_ascii=False, default=str)
