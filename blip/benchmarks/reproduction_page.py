"""The paper's numbers beside ours: one page, as Markdown and as HTML from the same cells."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blip.benchmarks.catalogue import Catalogue
from blip.benchmarks.listing import how, size
from blip.benchmarks.published import Places, Published
from blip.benchmarks.reproduce import Outcome, missing_places
from blip.report.document import to_document
from blip.report.markup import NOTHING, Markup, join, tag

TITLE = "The paper's numbers, and ours"
TARGET = "What this project set out to reach"

_COLUMNS = ("row", "metrics", "published", "ours", "difference", "state")
_STATES = {
    "reproduced": "within the table's tolerance",
    "differs": "further away",
    "incomplete": "the evaluation gave some of the values only",
    "submitted": "a server has to score what was written",
    "due": "everything is here, and it has not run",
    "waiting": "for the files that are named",
    "failed": "the evaluation ended with the error that is named",
}


@dataclass(frozen=True)
class Cells:
    """A table of the page: its heading, words under it, heads of columns, and lines of cells."""

    title: str
    words: Sequence[str]
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]


def lay_out(
    outcomes: Sequence[Outcome], published: Published, catalogue: Catalogue, places: Places
) -> list[Cells]:
    """Give the tables of the page: the target, the others, missing files, and commands."""
    counts = {state: sum(o.state == state for o in outcomes) for state in _STATES}
    found = [f"{count} {state} ({_STATES[state]})" for state, count in counts.items() if count]
    target = [outcome for outcome in outcomes if outcome.row.target]
    words = [f"Of {len(outcomes)} rows: {', '.join(found)}.", *_words(target)]
    lines = [_line(outcome, f"{outcome.table.title}: {outcome.row.model}") for outcome in target]
    tables = [Cells(TARGET if target else "State", words, _COLUMNS, lines)]
    for table in published.tables.values():
        rows = [o for o in outcomes if o.table is table and not o.row.target]
        if rows:
            lines = [_line(o, o.row.model) for o in rows]
            tables.append(Cells(table.title, _words(rows), _COLUMNS, lines))
    return [*tables, *_missing(published, catalogue, places), _commands(published, places)]


def to_markdown(tables: Sequence[Cells], intro: str) -> str:
    """Give the page as Markdown."""
    lines = [f"# {TITLE}", "", intro, ""]
    for cells in tables:
        lines += [f"## {cells.title}", "", *(f"{words}\n" for words in cells.words)]
        if cells.lines:
            lines += [*_rows([cells.heads, ["---"] * len(cells.heads), *cells.lines]), ""]
    return "\n".join(lines).rstrip() + "\n"


def to_html(tables: Sequence[Cells], intro: str) -> str:
    """Give the page as HTML that opens from disk."""
    sections = [
        tag(
            "section",
            tag("h2", cells.title),
            [tag("p", _inline(words), class_="note") for words in cells.words],
            tag("div", _table(cells), class_="scroll") if cells.lines else None,
        )
        for cells in tables
    ]
    header = tag("header", tag("p", "BLIP"), tag("h1", TITLE))
    body = tag("main", header, tag("p", _inline(intro)), sections)
    return to_document(TITLE, body)


def _line(outcome: Outcome, name: str) -> list[str]:
    values = list(outcome.row.values.values())
    printed = [str(v) for row in outcome.table.rows.values() for v in row.values.values()]
    decimals = max(len(value.partition(".")[2]) for value in printed)
    return [
        name + (" *" if outcome.row.note else ""),
        outcome.table.metrics,
        " / ".join(f"{value:.{decimals}f}" for value in values),
        _join(outcome.ours, f".{decimals}f"),
        _join(outcome.differences, f"+.{decimals}f"),
        _state(outcome),
    ]


def _state(outcome: Outcome) -> str:
    if outcome.state == "waiting":
        return f"waiting for {', '.join(f'`{place}`' for place in outcome.detail.split(', '))}"
    return f"{outcome.state}: {outcome.detail}" if outcome.detail else outcome.state


def _join(values: Sequence[float | None], form: str) -> str:
    if all(value is None for value in values):
        return NOTHING
    return " / ".join(NOTHING if value is None else f"{value:{form}}" for value in values)


def _words(outcomes: Sequence[Outcome]) -> list[str]:
    """Say where the numbers stand, how near is near enough, and what else to know."""
    tables: Mapping[str, Outcome] = {o.table.title: o for o in outcomes}
    sources = [
        f"{title + ': ' if len(tables) > 1 else ''}published in {o.row.source or o.table.source}; "
        f"reproduced is within {o.table.tolerance:g} ({o.table.why})."
        for title, o in tables.items()
    ]
    notes = [f"* {o.table.title}: {o.row.note}." for o in outcomes if o.row.note]
    return [*(f"{source[:1].upper()}{source[1:]}" for source in sources), *notes]


def _missing(published: Published, catalogue: Catalogue, places: Places) -> Iterator[Cells]:
    names = [
        place
        for name in published.evaluations
        for place in missing_places(published, catalogue, places, name)
    ]
    lines = []
    for place in dict.fromkeys(names):
        source = catalogue.source(place)
        assert source is not None
        file = catalogue.files[source]
        benchmark = next((n for n, b in catalogue.benchmarks.items() if source in b.files), "")
        way = how(file)
        if file.url is not None:
            options = " --unpack" if file.unpacks else ""
            way = f"`blip benchmark fetch {benchmark} --only {Path(source).name}{options}`"
            way += f"; {file.obtain}" if file.obtain else ""
        lines.append([f"`{place}`", file.purpose, size(file), way])
    if lines:
        words = [f"Below `{places.data}` (checkpoints below `{places.checkpoints}`)."]
        yield Cells(
            "What is missing", words, ("file", "what it is", "size", "how to get it"), lines
        )


def _commands(published: Published, places: Places) -> Cells:
    lines = []
    for name, evaluation in published.evaluations.items():
        rows = [row for _, row, of in published.rows() if of.evaluation == name]
        command = shlex.join(["blip", *places.words(name, evaluation)])
        lines.append([", ".join(rows), f"`{command}`"])
    words = [f"The presets name `BLIP_DATA`: `export BLIP_DATA={places.data}` first."]
    return Cells("Commands", words, ("rows", "command"), lines)


def _rows(lines: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    ]


def _table(cells: Cells) -> Markup:
    head = tag("thead", tag("tr", [tag("th", name) for name in cells.heads]))
    rows = [tag("tr", [tag("td", _inline(cell)) for cell in line]) for line in cells.lines]
    return tag("table", head, tag("tbody", rows))


def _inline(text: str) -> Markup:
    """Give the markup of words with `code` in them."""
    parts = text.split("`")
    return join([tag("code", part) if number % 2 else part for number, part in enumerate(parts)])
