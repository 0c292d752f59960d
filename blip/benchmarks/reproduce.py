"""Runs the evaluations that are due, one after the other, and holds their numbers against the published.

Each is the command that a person would type, in a process of its own: a stage, so that what is
finished is not done again, and one that was killed goes on. No number is here that `metrics.json`
of a finished evaluation does not hold.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from blip.benchmarks.catalogue import Catalogue
from blip.benchmarks.published import Places, Published, Row, Table
from blip.errors import ConfigError, DataError
from blip.files import read_json

State = Literal["reproduced", "differs", "waiting", "due", "submitted", "incomplete", "failed"]

ROUNDING = 1e-9  # of a difference of decimal numbers


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        table: Of the row.
        name: Of the row.
        row: What was published.
        ours: The values of our evaluation in the row's order; None for one that it does not give.
        state: `due`: everything is here, and it has not run. `submitted`: a server has to score it.
            `incomplete`: the evaluation gave some of the values only.
        detail: The files that it waits for, the error, or the metrics that differ or are not there.
    """

    table: Table
    name: str
    row: Row
    ours: Sequence[float | None]
    state: State
    detail: str = ""

    @property
    def differences(self) -> list[float | None]:
        """Ours minus the published."""
        pairs = zip(self.ours, self.row.values.values(), strict=True)
        return [None if ours is None else ours - published for ours, published in pairs]


def reproduce(
    published: Published,
    catalogue: Catalogue,
    places: Places,
    only: Collection[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Run what has all its files, and give every row with its state.

    Args:
        published: What to reproduce.
        catalogue: Says which places are files.
        places: Where they lie.
        only: Names of rows or evaluations to run; of all others, finished results are read.
        say: Told what is run, and how it ended.

    Raises:
        ConfigError: `only` names what is not there.
        DataError: The folder of the results cannot be written.
    """
    wanted = _wanted(published, only)
    missing = {
        name: missing_places(published, catalogue, places, name) for name in published.evaluations
    }
    due = [name for name in wanted if not missing[name]]
    errors = {}
    for number, name in enumerate(due, 1):
        say(f"{number}/{len(due)} {name}: see {places.results / name}.log")
        error = _run(published, places, name)
        if error:
            errors[name] = error
            say(f"{name}: failed: {error}")
    return [
        _outcome(published, places, table, name, row, missing[row.evaluation], errors)
        for table, name, row in published.rows()
    ]


def missing_places(
    published: Published, catalogue: Catalogue, places: Places, name: str
) -> list[str]:
    """Give the catalogue's places that an evaluation reads and that are not here."""
    needs = places.needs(published.evaluations[name])
    return [p for p, path in needs.items() if catalogue.source(p) and not path.exists()]


def _wanted(published: Published, only: Collection[str]) -> list[str]:
    rows = {name: row.evaluation for _, name, row in published.rows()}
    unknown = [name for name in only if name not in rows and name not in published.evaluations]
    if unknown:
        raise ConfigError(f"there is no row {unknown[0]!r}: it is one of {', '.join(rows)}")
    chosen = {rows.get(name, name) for name in only}
    return [name for name in published.evaluations if not only or name in chosen]


def _run(published: Published, places: Places, name: str) -> str:
    """Run an evaluation; give its error on one line, or nothing."""
    words = places.words(name, published.evaluations[name])
    log = places.results / f"{name}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        opened = log.open("wb")
    except OSError as error:
        raise DataError(f"{log}: cannot be written: {error.strerror}") from None
    environment = {"BLIP_DATA": str(places.data), **os.environ}  # which the presets name
    with opened as file:
        done = subprocess.run(
            [sys.executable, "-m", "blip", *words],
            env=environment,
            stdout=file,
            stderr=file,
            check=False,
        )
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    said = log.read_text(encoding="utf-8", errors="replace")
    _, found, message = f"\n{said}".rpartition("\nblip: ")
    lines = said.strip().splitlines() or [f"exit code {done.returncode}"]
    return " ".join((message if found else lines[-1]).split())[:400]


def _outcome(
    published: Published,
    places: Places,
    table: Table,
    name: str,
    row: Row,
    missing: Sequence[str],
    errors: Mapping[str, str],
) -> Outcome:
    folder = places.results / row.evaluation
    none: list[float | None] = [None] * len(row.values)
    server = published.evaluations[row.evaluation].server
    if row.evaluation in errors:
        return Outcome(table, name, row, none, "failed", errors[row.evaluation])
    if not (folder / "stage.json").exists():
        detail = ", ".join(missing)
        return Outcome(table, name, row, none, "waiting" if missing else "due", detail)
    if server is not None:
        return Outcome(table, name, row, none, "submitted", f"{folder} goes to {server}")
    document = read_json(folder / "metrics.json")
    ours = [_value(document, path) for path in row.values]
    lacking = [path for path, value in zip(row.values, ours, strict=True) if value is None]
    far = [
        path
        for (path, value), mine in zip(row.values.items(), ours, strict=True)
        if mine is not None and abs(mine - value) > table.tolerance + ROUNDING
    ]
    if lacking:
        return Outcome(table, name, row, ours, "incomplete", f"no {', '.join(lacking)} in {folder}")
    return Outcome(table, name, row, ours, "differs" if far else "reproduced", ", ".join(far))


def _value(document: Any, path: str) -> float | None:
    """Find a metric by its path: a number, or one with an interval."""
    for part in path.split("/"):
        document = document.get(part) if isinstance(document, Mapping) else None
    value = document.get("value") if isinstance(document, Mapping) else document
    return float(value) if isinstance(value, int | float) else None
