"""Tells of the benchmarks' files: which are here, and how to get the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from blip.benchmarks.catalogue import BenchmarkFile, Catalogue
from blip.errors import ConfigError


def chosen(catalogue: Catalogue, name: str, only: Sequence[str]) -> Mapping[str, BenchmarkFile]:
    """Give the files of a benchmark, or some of them, by place or by last name.

    Raises:
        ConfigError: There is no such benchmark or file.
    """
    files = catalogue.find(name)
    if not only:
        return files
    found = {}
    for wanted in only:
        places = [place for place in files if wanted in (place, Path(place).name)]
        if not places:
            raise ConfigError(f"{name} has no file {wanted!r}: it has {', '.join(files)}")
        found.update({place: files[place] for place in places})
    return found


def format_list(catalogue: Catalogue, name: str, folder: Path) -> str:
    """Give the table of a benchmark's files.

    Raises:
        ConfigError: There is no such benchmark.
    """
    files = catalogue.find(name)
    rows = [
        (state(place, file, folder), place, size(file), file.licence, how(file))
        for place, file in files.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    return "\n".join([f"{name}: {catalogue.benchmarks[name].title}", *(f"  {x}" for x in lines)])


def state(place: str, file: BenchmarkFile, folder: Path) -> str:
    """Say whether a file is here, whole, in part, or as what it unpacks to."""
    path = folder / place
    if file.unpacks is not None and (folder / file.unpacks).exists():
        return "unpacked"
    if path.exists():
        whole = file.size is None or path.is_dir() or path.stat().st_size == file.size
        return "here" if whole else "another"
    part = path.with_name(f".{path.name}.part")
    return f"{readable(part.stat().st_size)} of it" if part.exists() else "missing"


def size(file: BenchmarkFile) -> str:
    """Give the size in words."""
    return readable(file.size) if file.size is not None else file.about or "?"


def how(file: BenchmarkFile) -> str:
    """Say how to get a file."""
    words = [] if file.url is None else ["fetch"]
    return "; ".join([*words, *([file.obtain] if file.obtain else [])])


def readable(count: int) -> str:
    """Give bytes in words, e.g. 2.7 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
