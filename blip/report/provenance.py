"""Where every text came from and went: corpora, writers and judges, dataset versions, models."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from blip.errors import DataError
from blip.report.arms import Arm
from blip.report.axes import number
from blip.report.charts import Bar, bar_chart
from blip.report.figure import Figure, Section
from blip.report.markup import NOTHING, Markup, join, tag
from blip.report.records import read_record
from blip.report.versions import Version

ORIGINS = {"web": "series-orange", "synthetic": "series-green", "human": "series-slate"}
_VERSION = ("Version", "Digest", "Images", "Web", "Synthetic", "Human", "Kept", "Dropped")
_MODEL = ("Model", "Digest", "Made by", "From", "Parameters")
_WRITER = ("Texts", "Written by", "Judged by", "Number", "Kept")


def provenance_section(
    root: Path,
    arms: Sequence[Arm],
    corpora: Mapping[str, Counter[str]],
    versions: Sequence[Version],
) -> Section | None:
    """Count the texts, name writers, judges, versions and models; None without any data."""
    if not versions:
        return None
    figures = [figure for figure in (_corpora(arms, corpora), _verdicts(versions)) if figure]
    tables = [
        _table("Dataset versions", _VERSION, _version_rows(versions), 6),
        _table("Models", _MODEL, _model_rows(root), 1),
        _table("Writers and judges", _WRITER, _writer_rows(root, versions), 2),
    ]
    content = [
        tag("div", [figure.html() for figure in figures], class_="row"),
        tag("div", tables, class_="columns"),
    ]
    return Section("lineage", "Lineage", join(content), figures)


def model_names(root: Path) -> dict[str, str]:
    """Give the name of every model under `root` by its digest."""
    records = {path.name: read_record(path) for path in sorted(root.glob("models/*"))}
    return {str(record["output"]): name for name, record in records.items() if record}


def count_parameters(weights: Path) -> int:
    """Count the parameters in a safetensors file from its header alone.

    Raises:
        DataError: The file cannot be read or has no such header.
    """
    try:
        with safe_open(weights, "numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.offset_keys())
    except (OSError, SafetensorError) as error:
        raise DataError(f"{weights}: cannot be read ({error}): make the model again") from None


def _corpora(arms: Sequence[Arm], corpora: Mapping[str, Counter[str]]) -> Figure | None:
    bars = [
        Bar(
            arm.label,
            [(ORIGINS[o], corpora[arm.name][o]) for o in ORIGINS],
            _count(corpora[arm.name].total()),
        )
        for arm in arms
        if corpora[arm.name]
    ]
    if not bars:
        return None
    present = [origin for origin in ORIGINS if any(corpus[origin] for corpus in corpora.values())]
    legend = [(ORIGINS[origin], f"{origin} texts") for origin in present]
    return Figure(
        "corpora",
        [bar_chart("Texts in each pre-training corpus", bars, 100, 60)],
        legend,
        columns=1,
    )


def _verdicts(versions: Sequence[Version]) -> Figure | None:
    """Draw what the filter kept, from the last version that holds verdicts."""
    judged = [version for version in versions if version.judged]
    if not judged:
        return None
    texts = judged[-1].count("origin", "kept")
    bars = []
    for origin in ORIGINS:
        kept, dropped = texts[origin, True], texts[origin, False]
        if kept + dropped:
            note = f"{kept / (kept + dropped):.0%} of {_count(kept + dropped)}"
            bars.append(Bar(origin, [("series-blue", kept), ("faint", dropped)], note))
    legend = [("series-blue", "kept"), ("faint", "dropped")]
    return Figure(
        "verdicts", [bar_chart("Texts that CapFilt kept", bars, 80, 110)], legend, columns=1
    )


def _writer_rows(root: Path, versions: Sequence[Version]) -> list[list[str]]:
    """Say which checkpoints wrote and judged the texts of the last judged version."""
    judged = [version for version in versions if version.judged]
    names = model_names(root)
    rows = []
    for version in judged[-1:]:
        fields = ("origin", "generator", "decoding", "filter")
        kept = version.only(lambda group: group.kept is True).count(*fields)
        for writer, count in sorted(version.count(*fields).items(), key=str):
            origin, generator, decoding, judge = writer
            by = (
                join([_checkpoint(generator, names), f" {_decoding(decoding or '')}"])
                if generator
                else "its source"
            )
            by_judge = _checkpoint(judge, names) if judge else NOTHING
            rows.append([origin, by, by_judge, _count(count), _count(kept[writer])])
    return rows


def _version_rows(versions: Sequence[Version]) -> list[list[str]]:
    rows = []
    for version in versions:
        by_origin, by_verdict = version.count("origin"), version.count("kept")
        counts = [*(by_origin[origin] for origin in ORIGINS), by_verdict[True], by_verdict[False]]
        digest = tag("code", version.dataset.digest[:12])
        shown = [_count(count) if count else NOTHING for count in counts]
        rows.append([version.dataset.name, digest, _count(version.dataset.num_images), *shown])
    return rows


def _model_rows(root: Path) -> list[list[str]]:
    names = model_names(root)
    rows = []
    for digest, name in sorted(names.items(), key=lambda item: item[1]):
        record = read_record(root / "models" / name)
        parents = [names.get(d, d[:12]) for d in record["inputs"].get("model", [])]
        weights = root / "models" / name / "model.safetensors"
        size = number(count_parameters(weights) / 1e6, 2) + " M" if weights.is_file() else NOTHING
        rows.append(
            [name, tag("code", digest[:12]), record["stage"], ", ".join(parents) or NOTHING, size]
        )
    return rows


def _table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], figures: int
) -> Markup | None:
    """Give a titled table whose last `figures` columns are numbers; None without rows."""
    if not rows:
        return None
    classes = [None if i < len(head) - figures else "figure" for i in range(len(head))]
    top = tag(
        "tr",
        [tag("th", name, scope="col", class_=c) for name, c in zip(head, classes, strict=True)],
    )
    body = [
        tag("tr", [tag("td", cell, class_=c) for cell, c in zip(row, classes, strict=True)])
        for row in rows
    ]
    table = tag("div", tag("table", tag("thead", top), tag("tbody", body)), class_="scroll")
    return tag("div", tag("h3", title), table)


def _checkpoint(digest: str, names: Mapping[str, str]) -> Markup:
    return join([names.get(digest, "unknown"), " ", tag("code", digest[:12])])


def _decoding(text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if not isinstance(found, dict):
        return text
    match found.get("method"):
        case "nucleus":
            return f"nucleus, p {found.get('top_p')}"
        case "beam":
            return f"beam, {found.get('num_beams')}"
        case method:
            return str(method or text)


def _count(value: float) -> str:
    return number(value, 0)
