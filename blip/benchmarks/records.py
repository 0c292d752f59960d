"""What the readers of benchmarks' files share: rules for values, and errors that name the record."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip.data.sources import is_safe, json_items
from blip.errors import DataError


def require(holds: object, where: str, name: str, value: object, rule: str) -> None:
    """See that a value keeps a rule; `where` names its record.

    Raises:
        DataError: It does not.
    """
    if not holds:
        raise DataError(
            f"{where}: {name} is {value!r:.80}, it must be {rule}: mend or remove the record"
        )


def numbered(path: Path) -> Iterator[tuple[str, Any]]:
    """Give the records of a JSON list, and how errors name them."""
    for number, item in enumerate(json_items(path), 1):
        yield f"{path}, record {number}", item


def score(item: Any, name: str, where: str) -> float:
    """Give a field that must be a number, and a finite one."""
    value = item.get(name) if isinstance(item, dict) else None
    number = float(value) if isinstance(value, int | float) else math.nan
    require(math.isfinite(number), where, name, value, "a finite number")
    return number


def text(value: str, name: str, where: str) -> str:
    """Give a text, which must say something."""
    require(value.strip(), where, name, value, "a text that is not empty")
    return value


def photo(name: str, where: str) -> str:
    """Give the name of a photo, which must stay below the folder of the photos."""
    require(is_safe(name), where, "image", name, "a plain path below the folder of the photos")
    return name
