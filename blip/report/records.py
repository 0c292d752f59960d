"""Reading what stages left behind, where they did."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip.errors import DataError
from blip.files import read_json
from blip.stage import RECORD


def read_record(folder: Path) -> Mapping[str, Any]:
    """Read what made a stage's output (`stage.json`); empty where it is not there."""
    return read_metrics(folder / RECORD)


def read_metrics(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; empty where there is none.

    Raises:
        DataError: The file is malformed.
    """
    document: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    return document


def read_columns(path: Path) -> dict[str, list[float]]:
    """Read the columns of a CSV of numbers, an empty field as nan; empty where there is no file.

    Raises:
        DataError: A field is not a number.
    """
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return (
            {column: [float(row[column] or "nan") for row in rows] for column in rows[0]}
            if rows
            else {}
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a field is not a number ({error}): make it again") from None
