"""The numbers that the paper's tables report, and by which command each is computed here.

`published.yaml` beside this module has them all. A row is a line of a table: values that one
evaluation gives. Several rows may come from the same evaluation.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from blip.benchmarks.catalogue import read_document
from blip.config import PRESETS, Section

PUBLISHED = Path(__file__).parent / "published.yaml"

Tolerance = Annotated[float, Field(gt=0.0)]


class Evaluation(Section):
    """What computes numbers.

    Attributes:
        command: Words of the `blip` command, with `{data}`, `{checkpoints}` and `{presets}`; the
            output is added.
        needs: Places of the catalogue that the command reads beside those it names: photos.
        server: Who scores the submission, where the answers are not told.
    """

    command: str
    needs: tuple[str, ...] = ()
    server: str | None = None


class Row(Section):
    """A line of a table.

    Attributes:
        model: As the table names it.
        evaluation: What gives the values.
        values: What was published, by the path of the metric in `metrics.json`.
        target: Whether it is one of the rows that this project set out to reach.
        source: Where the number stands, if not in the table's source.
        note: What to know of it.
    """

    model: str
    evaluation: str
    values: Annotated[dict[str, float], Field(min_length=1)]
    target: bool = False
    source: str | None = None
    note: str | None = None


class Table(Section):
    """Rows with the same metrics.

    Attributes:
        title: The benchmark.
        metrics: Names of the values of each row, in their order.
        source: Where the numbers stand.
        tolerance: How far ours may be away to count as reproduced; `why` tells the reason.
        why: See there.
        rows: By name.
    """

    title: str
    metrics: str
    source: str
    tolerance: Tolerance
    why: str
    rows: dict[str, Row]


class Published(Section):
    """All tables and what computes them."""

    evaluations: dict[str, Evaluation]
    tables: dict[str, Table]

    @model_validator(mode="after")
    def _consistent(self) -> "Published":
        names: set[str] = set()
        for _, name, row in self.rows():
            if name in names:
                raise ValueError(f"two rows are called {name!r}")
            if row.evaluation not in self.evaluations:
                raise ValueError(f"row {name!r}: there is no evaluation {row.evaluation!r}")
            names.add(name)
        return self

    def rows(self) -> Iterator[tuple[Table, str, Row]]:
        """Give every row with its table and name, in the order of the file."""
        for table in self.tables.values():
            for name, row in table.rows.items():
                yield table, name, row


class Places(Section):
    """Where things lie.

    Attributes:
        data: The folder of the benchmarks' files.
        checkpoints: That of the models.
        results: Where each evaluation writes, in a folder of its name.
    """

    data: Path
    checkpoints: Path
    results: Path

    def words(self, name: str, evaluation: Evaluation) -> list[str]:
        """Give the words of an evaluation's command behind `blip`."""
        places = {"data": self.data, "checkpoints": self.checkpoints, "presets": _presets()}
        words = [word.format_map(places) for word in shlex.split(evaluation.command)]
        return [*words, "--out", str(self.results / name)]

    def needs(self, evaluation: Evaluation) -> Mapping[str, Path]:
        """Give what an evaluation reads: the catalogue's places, and where they lie here."""
        found = {}
        for word in shlex.split(evaluation.command):
            for root, folder in (("{data}/", ""), ("{checkpoints}/", "checkpoints/")):
                if word.startswith(root):
                    place = folder + word.removeprefix(root)
                    found[place] = self.path(place)
        return {**found, **{place: self.path(place) for place in evaluation.needs}}

    def path(self, place: str) -> Path:
        """Give where a place of the catalogue lies."""
        if place.startswith("checkpoints/"):
            return self.checkpoints / place.removeprefix("checkpoints/")
        return self.data / place


def load_published(path: Path = PUBLISHED) -> Published:
    """Read the published numbers.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value breaks its rule.
    """
    return read_document(path, Published)


def _presets() -> Path:
    """Give the folder of the presets, short where the command runs in a checkout."""
    here = Path("blip/presets")
    return here if here.is_dir() and here.samefile(PRESETS) else PRESETS
