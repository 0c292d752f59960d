"""`blip benchmark` and `blip reproduce`: the files of the paper's benchmarks, and its tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from blip.benchmarks.catalogue import BenchmarkFile

app = typer.Typer(no_args_is_help=True, help="List and fetch the files of the paper's benchmarks.")

PAPER = Path("paper")
INTRO = (
    "Written by `blip reproduce`: published numbers with their source, and ours where the files are here. "
    "Nothing stands under *ours* that a finished evaluation did not give."
)

Folder = Annotated[Path, typer.Option("--out", help="Folder of all benchmarks' files.")]
Table = Annotated[
    Path | None,
    typer.Option(
        "--catalogue", help="Another list of files (YAML) than blip/benchmarks/files.yaml."
    ),
]


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="One benchmark; default: all.")] = None,
    out: Folder = PAPER,
    catalogue: Table = None,
) -> None:
    """List the files: here or missing, and how to get them.

    A line for each file: state, place, size, licence, and how to get it.
    """
    from blip.benchmarks.catalogue import CATALOGUE, load_catalogue
    from blip.benchmarks.listing import format_list

    found = load_catalogue(catalogue or CATALOGUE)
    names = list(found.benchmarks) if name is None else [name]
    typer.echo("\n\n".join(format_list(found, each, out) for each in names))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A benchmark of `blip benchmark list`.")],
    out: Folder = PAPER,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this file of it. May be repeated.")
    ] = None,
    unpacked: Annotated[
        bool, typer.Option("--unpack", help="Also unpack the archives, beside themselves.")
    ] = False,
    catalogue: Table = None,
) -> None:
    """Download a benchmark's files: resumed, checked, pinned by DVC.

    Files are checked against the checksums that their source gives or, where it gives none, against fetched.json,
    which records the first download. A file that fails does not keep the others away; it is named at the end, as are
    files that need a person (a registration, a form), with exit code 2.
    """
    from blip.benchmarks.catalogue import CATALOGUE, load_catalogue
    from blip.benchmarks.listing import chosen
    from blip.errors import DataError

    files = chosen(load_catalogue(catalogue or CATALOGUE), name, only or [])
    by_hand, failed = [], []
    for place, file in files.items():
        if file.url is None:
            if not (out / place).exists():
                by_hand.append(f"{out / place}: {file.obtain}")
            continue
        try:
            _bring(place, file, out, unpacked)
        except DataError as error:
            failed.append(str(error))
    if by_hand:
        failed.append("\n".join(["no address gives these, which a person must get:", *by_hand]))
    if failed:
        raise DataError("\n".join(failed))


def _bring(place: str, file: "BenchmarkFile", out: Path, unpacked: bool) -> None:
    """Fetch, pin and unpack a file, and say so."""
    from blip.benchmarks.fetch import fetch as fetch_file
    from blip.benchmarks.unpack import unpack
    from blip.integrations.pinning import pin_file

    record = fetch_file(place, file, out)
    pinned = "pinned by DVC" if pin_file(out / place) else "outside of a DVC project"
    typer.echo(f"{out / place}: {record.size:,} bytes, sha256 {record.sha256[:12]}, {pinned}")
    if file.unpacks is not None and unpacked:
        unpack(out / place, out / file.unpacks)
        typer.echo(f"{out / file.unpacks}: unpacked")
    elif file.unpacks is not None and not (out / file.unpacks).exists():
        typer.echo(f"{out / file.unpacks}: unpack it from {out / place}, or give --unpack")


def reproduce(
    out: Annotated[
        Path, typer.Option("--out", help="The page to write: .html, or .md for Markdown.")
    ] = Path("reports/reproduce.html"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Only this row (or evaluation). May be repeated."),
    ] = None,
    data: Annotated[
        Path, typer.Option("--data", help="The folder of the benchmarks' files.")
    ] = PAPER,
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", help="The models; default: DATA/checkpoints.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table", help="Other published numbers (YAML) than blip/benchmarks/published.yaml."
        ),
    ] = None,
    catalogue: Table = None,
) -> None:
    """Print the paper's tables beside our numbers.

    Each row is a `blip evaluate` command, as it stands on the page. Rows whose files are here are run; for the others
    the page names what is missing. Results are kept in DATA/results and not computed again. A row that fails is
    reported, the others go on, and the exit code is 2.
    """
    from blip.benchmarks.catalogue import CATALOGUE, load_catalogue
    from blip.benchmarks.published import PUBLISHED, Places, load_published
    from blip.benchmarks.reproduce import reproduce as run
    from blip.benchmarks.reproduction_page import lay_out, to_html, to_markdown
    from blip.errors import DataError
    from blip.files import write_text

    published, files = load_published(table or PUBLISHED), load_catalogue(catalogue or CATALOGUE)
    places = Places(
        data=data, checkpoints=checkpoints or data / "checkpoints", results=data / "results"
    )
    outcomes = run(published, files, places, only or [], lambda words: typer.echo(words, err=True))
    tables = lay_out(outcomes, published, files, places)
    write_text(out, (to_markdown if out.suffix == ".md" else to_html)(tables, INTRO))
    typer.echo(to_markdown(tables[:-2], INTRO))
    typer.echo(f"wrote {out}", err=True)
    failed = [outcome.name for outcome in outcomes if outcome.state == "failed"]
    if failed:
        raise DataError(f"failed: {', '.join(failed)}: {out} says why")
