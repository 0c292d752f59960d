"""What the readers of benchmarks' files share: rules for values, and errors that name the record."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from blip.data.image_store import is_safe
from blip.data.text import has_words
from blip.data.text_records import require
from blip.errors import DataError


def is_finite(value: object) -> bool:
    """Tell whether a value from JSON is a number that a float can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # not nan either


def score(item: Any, name: str, where: str) -> float:
    """Give a field that must be a number, and a finite one."""
    value = item.get(name) if isinstance(item, dict) else None
    require(is_finite(value), where, name, value, "a finite number")
    assert isinstance(value, int | float)
    return float(value)


def text(value: str, name: str, where: str) -> str:
    """Give a text, which must say something."""
    require(value.strip(), where, name, value, "a text that is not empty")
    return value


def question_text(value: str, where: str) -> str:
    """Give a question, of which cleaning must leave a word."""
    require(has_words(value), where, "question", value, "a question with words")
    return value


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
        DataError: It is unreadable, or a matrix is missing or of another size.
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
    return found
