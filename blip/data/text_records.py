"""Text files of others, record by record: lines, lines of JSON, lists in JSON of any length.

Whatever is wrong with one is an error that names file, record, value, rule and remedy.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeVar

from blip.errors import DataError
from blip.files import unique_members

T = TypeVar("T")

_DECODER = json.JSONDecoder(object_pairs_hook=unique_members)
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20  # characters of JSON read at once
_MAX_RECORD = 1 << 24  # characters that one record of a JSON list may have


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file could not be read."""
    try:
        yield
    except UnicodeDecodeError as error:
        if error.object.startswith(_GZIP):
            raise DataError(f"{path}: is compressed: unpack it") from None
        raise DataError(f"{path}: is not UTF-8 ({error}): convert it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines that are not blank, with their numbers.

    Raises:
        DataError: The file cannot be read.
    """
    with reading(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip("\n")


def json_items(path: Path, member: str | None = None) -> Iterator[Any]:
    """Give the items of a JSON list one by one, without holding the file.

    Args:
        path: The file.
        member: The file holds an object, and the list is this member of it; those before it are
            held one at a time.

    Raises:
        DataError: The file cannot be read, or holds no such list; the record is named.
    """
    with reading(path), path.open(encoding="utf-8-sig") as file:
        text = _JsonText(path, file)
        if member is not None:
            _enter_member(text, member)
        separator = "["
        for number in itertools.count(1):
            item = text.take(partial(_next_item, separator=separator), f"record {number}")
            if not item:
                break
            yield item[0]
            separator = ","
        if member is None:
            text.end()


def numbered(path: Path) -> Iterator[tuple[str, Any]]:
    """Give the records of a JSON list, and how errors name them."""
    for number, item in enumerate(json_items(path), 1):
        yield f"{path}, record {number}", item


def is_json_list(path: Path) -> bool:
    """Tell a list in JSON from an object, or from lines of them.

    Raises:
        DataError: The file cannot be read.
    """
    with reading(path), path.open(encoding="utf-8-sig") as file:
        return file.read(_CHUNK).lstrip().startswith("[")


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Give what stands on each line of a file, in JSON, and how errors name the line.

    Raises:
        DataError: The file cannot be read, or a line is not JSON; it is named.
    """
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line, object_pairs_hook=unique_members)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: is not JSON ({error}), it begins with {line[:60]!r}: mend the file; if "
                "it is cut short, fetch it again"
            ) from None


class _JsonText:
    """A file of JSON that is read as far as the next value needs."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self._file = path, file
        self._text, self._at = file.read(_CHUNK), 0

    def take(self, parse: Callable[[str, int], tuple[T, int]], what: str) -> T:
        """Give what `parse` finds at the place in the text, and go on behind it."""
        while True:
            try:
                found, self._at = parse(self._text, self._at)
                return found
            except (ValueError, RecursionError) as error:
                rest = self._text[self._at :]
                more = self._file.read(_CHUNK) if len(rest) < _MAX_RECORD else ""
                if not more:
                    raise DataError(
                        f"{self.path}, {what}: is not JSON ({error}), it begins with "
                        f"{rest[:60]!r}: mend the file; if it is cut short, fetch it again"
                    ) from None
                self._text, self._at = rest + more, 0

    def end(self) -> None:
        """See that nothing follows but space."""
        rest = self._text[self._at :].lstrip()
        while not rest and (more := self._file.read(_CHUNK)):
            rest = more.lstrip()
        if rest:
            raise DataError(
                f"{self.path}: goes on behind its list, with {rest[:60]!r}: make one list of all, "
                "or remove what does not belong to it"
            )


def _enter_member(text: _JsonText, member: str) -> None:
    """Go to the value of a member of the object that begins here."""
    separator = "{"
    while (name := text.take(partial(_next_name, separator=separator), member)) != member:
        if name is None:
            raise DataError(f"{text.path}: has no {member!r}: it is a file of something else")
        text.take(_next_value, name)
        separator = ","


def _next_name(text: str, at: int, separator: str) -> tuple[str | None, int]:
    """Give the name of the member behind a separator, and where its value begins; None at the end."""
    if separator == ",":
        at = _skip_space(text, at)
        if text.startswith("}", at):
            return None, at
    at = _skip(text, at, separator)
    if separator == "{" and text.startswith("}", at):
        return None, at
    name, at = _next_value(text, at)
    return str(name), _skip(text, at, ":")


def _next_item(text: str, at: int, separator: str) -> tuple[list[Any], int]:
    """Give the list item behind a separator, and where it ends; none at the end of the list."""
    if separator == ",":
        at = _skip_space(text, at)
        if text.startswith("]", at):
            return [], at + 1
    at = _skip(text, at, separator)
    if separator == "[" and text.startswith("]", at):
        return [], at + 1
    item, at = _next_value(text, at)
    return [item], at


def _next_value(text: str, at: int) -> tuple[Any, int]:
    """Give a value, and where it ends: before the end of the text, where a number might go on."""
    value, at = _DECODER.raw_decode(text, _skip_space(text, at))
    if at == len(text):
        raise ValueError("it is cut short")
    return value, at


def _skip(text: str, at: int, mark: str) -> int:
    """Give the place behind a mark and the space around it."""
    at = _skip_space(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"expected {mark!r}")
    return _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def field(item: Any, name: str, kind: type[T] | tuple[type[T], ...], where: str) -> T:
    """Give the field of a record, which must be of a kind; `where` names the record in the error.

    Raises:
        DataError: The record is no object, or lacks the field, or it is of another kind.
    """
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = getattr(kind, "__name__", "int or str")
        raise DataError(
            f"{where}: {name} is {value!r:.80}, it must be {wanted}: mend or remove the record "
            f"({item!r:.80})"
        )
    return value


def require(holds: object, where: str, name: str, value: object, rule: str) -> None:
    """See that a value keeps a rule; `where` names its record.

    Raises:
        DataError: It does not.
    """
    if not holds:
        raise DataError(
            f"{where}: {name} is {value!r:.80}, it must be {rule}: mend or remove the record"
        )
