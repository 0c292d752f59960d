"""What the readers of benchmarks' files share: rules for values, and errors that name the record."""

import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from blip.data.image_store import is_safe
from blip.data.text import has_words
from blip.data.text_records import numbered, require
from blip.errors import DataError
from blip.metrics.ids import name_some, require_one_each

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def require_unique(keys: Iterable[Hashable], path: Path) -> None:
    """See that no record of a file stands twice.

    Raises:
        DataError: Some do; their keys are named.
    """
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise DataError(f"{path}: {name_some(twice)} stands more than once: remove all but one")


def read_predictions(
    path: Path, examples: Sequence[K], data: Path, parse: Callable[[Any, str], tuple[K, V]]
) -> list[V]:
    """Read a JSON list with a prediction for each example of a set.

    Args:
        path: The file; its records may be in any order.
        examples: The keys of the examples.
        data: The set, for messages.
        parse: Gives key and value of a record; its other argument names the record in errors.

    Returns:
        The values, in the order of the examples.

    Raises:
        DataError: The file is unreadable, or predictions are missing, surplus, or stand twice.
    """
    given = [parse(item, where) for where, item in numbered(path)]
    require_one_each((key for key, _ in given), examples, path, data)
    values = dict(given)
    return [values[key] for key in examples]


def is_finite(value: object) -> bool:
    """Tell whether a value from JSON is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # not nan either


def score(item: Any, name: str, where: str) -> float:
    """Give a field that must be a number, and a finite one."""
    value = item.get(name) if isinstance(item, dict) else None
    require(is_finite(value), where, name, value, "a finite number")
    assert isinstance(value, int | float)
    return float(value)


def storable(value: str, name: str, where: str) -> str:
    """Give a text that a file can hold: JSON can write half of a character alone."""
    halves = any("\ud800" <= character <= "\udfff" for character in value)
    require(not halves, where, name, value, "a text of whole characters")
    return value


def text(value: str, name: str, where: str) -> str:
    """Give a text, which must say something."""
    require(value.strip(), where, name, value, "a text that is not empty")
    return storable(value, name, where)


def words(value: str, name: str, where: str) -> str:
    """Give a question or a sentence, of which cleaning must leave a word."""
    require(has_words(value), where, name, value, f"a {name} with words")
    return storable(value, name, where)


def photo(name: str, where: str) -> str:
    """Give the name of a photo, which must stay below the folder of the photos."""
    require(is_safe(name), where, "image", name, "a plain path below the folder of the photos")
    return name


def read_matrices(
    path: Path, shapes: Mapping[str, tuple[int, int]], data: Path
) -> list[NDArray[Any]]:
    """Read matrices of scores: a .npz, a row for each query, in the order of the test set.

    Args:
        path: The file.
        shapes: Of each matrix, by name.
        data: The test set, for messages.

    Raises:
        DataError: It is unreadable, or a matrix is missing, of another size, or not of numbers.
    """
    try:
        with np.load(path) as arrays:
            found = [arrays[name] for name in shapes]
    except (OSError, KeyError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise DataError(
            f"{path}: holds no matrices {' and '.join(shapes)} as numpy.savez writes them: {error}"
        ) from None
    for (name, shape), matrix in zip(shapes.items(), found, strict=True):
        if matrix.shape != shape:
            raise DataError(
                f"{path}: {name} is {matrix.shape}, for {data} it must be {shape}: give a row for "
                "each query and a column for each candidate, in the order of the file"
            )
        if matrix.dtype.kind not in "iuf":
            raise DataError(f"{path}: {name} holds {matrix.dtype}, it must hold numbers")
    return found
