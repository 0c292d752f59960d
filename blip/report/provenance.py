"""Where every text came from and went: the corpora, who wrote and judged, the dataset versions and models."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from blip.data.dataset import MANIFEST, Dataset, open_dataset
from blip.errors import DataError
from blip.report.arms import Arm
from blip.report.axes import number
from blip.report.charts import Bar, bar_chart
from blip.report.figure import Figure, Section
from blip.report.markup import Markup, join, tag
from blip.report.records import read_record

ORIGINS = {"web": "series-orange", "synthetic": "series-green", "human": "series-slate"}


class Group(NamedTuple):
    """Texts that share their origin, verdict, writer and judge, as the caption tables have them."""

    origin: str
    kept: bool | None
    generator: str | None
    decoding: str | None
    filter: str | None


@dataclass(frozen=True)
class Version:
    """A dataset version and what its texts are.

    Attributes:
        dataset: The version.
        output: Digest by which later stages name it; empty where that is not recorded.
        groups: Number of texts by group.
    """

    dataset: Dataset
    output: str
    groups: Counter[Group]

    def count(self, *fields: str) -> Counter[Any]:
        """Count the texts by one field of `Group`, or by several."""
        counts: Counter[Any] = Counter()
        for group, number_of_texts in self.groups.items():
            values = tuple(getattr(group, field) for field in fields)
            counts[values if len(fields) > 1 else values[0]] += number_of_texts
        return counts

    def trained_on(self) -> Counter[str]:
        """Count the texts that training reads, by origin: all but the dropped."""
        kept = {group: count for group, count in self.groups.items() if group.kept is not False}
        return Version(self.dataset, self.output, Counter(kept)).count("origin")

    @property
    def judged(self) -> bool:
        """Whether its texts carry verdicts."""
        return any(group.kept is not None for group in self.groups)


def provenance_section(root: Path, arms: Sequence[Arm]) -> Section | None:
    """Count texts by origin, verdict and corpus; name writers, judges, versions and models; None without data."""
    versions = read_versions(root)
    if not versions:
        return None
    figures = [figure for figure in (_corpora(arms, versions), _verdicts(versions)) if figure]
    content = [
        [figure.html() for figure in figures],
        _writers(root, versions),
        tag("h3", "Dataset versions"),
        _versions_table(versions),
        _models_table(root),
    ]
    return Section("lineage", "Lineage", join(content), figures)


def read_versions(root: Path) -> list[Version]:
    """Read the dataset versions under `root`, in the order of their making."""
    order = ["web", "human", "test", "synthetic", "scored", "bootstrapped"]
    paths = [path.parent for path in root.glob(f"datasets/*/{MANIFEST}")]
    paths.sort(key=lambda p: (order.index(p.name) if p.name in order else len(order), p.name))
    return [_read_version(path) for path in paths]


def corpus_of(arm: Arm, versions: Sequence[Version]) -> Counter[str]:
    """Count the texts that an arm was pre-trained on, by origin; empty where its data are not here."""
    by_output = {version.output: version for version in versions if version.output}
    read = [by_output.get(digest) for digest in arm.record.get("inputs", {}).get("data", [])]
    return sum((version.trained_on() for version in read if version), Counter()) if all(read) else Counter()


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
        with weights.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(_product(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{weights}: cannot be read as safetensors ({error!r}): make the model again") from None


def _read_version(path: Path) -> Version:
    dataset = open_dataset(path)
    groups: Counter[Group] = Counter()
    for shard in dataset.shards:  # one at a time: all texts of a large version do not fit into memory
        counted = shard.read_captions().group_by(list(Group._fields)).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            groups[Group(**{field: row[field] for field in Group._fields})] += row["count_all"]
    return Version(dataset, str(read_record(path).get("output", "")), groups)


def _corpora(arms: Sequence[Arm], versions: Sequence[Version]) -> Figure | None:
    corpora = [(arm, corpus_of(arm, versions)) for arm in arms]
    bars = [
        Bar(arm.label, [(ORIGINS[origin], corpus[origin]) for origin in ORIGINS if corpus[origin]], _count(corpus.total()))
        for arm, corpus in corpora
        if corpus
    ]
    if not bars:
        return None
    present = [origin for origin in ORIGINS if any(corpus[origin] for _, corpus in corpora)]
    legend = [(ORIGINS[origin], f"{origin} texts") for origin in present]
    return Figure("corpora", [bar_chart("Texts in each pre-training corpus", bars)], legend, columns=1)


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
    return Figure("verdicts", [bar_chart("Texts that CapFilt kept", bars, 80, 110)], legend, columns=1)


def _writers(root: Path, versions: Sequence[Version]) -> Markup | None:
    """Say which checkpoints wrote and judged the texts of the last judged version."""
    judged = [version for version in versions if version.judged]
    if not judged:
        return None
    names = model_names(root)
    rows = []
    by_writer = judged[-1].count("origin", "generator", "decoding", "filter")
    kept = Version(judged[-1].dataset, "", Counter({g: n for g, n in judged[-1].groups.items() if g.kept}))
    kept_by_writer = kept.count("origin", "generator", "decoding", "filter")
    for group, count in sorted(by_writer.items(), key=str):
        origin, generator, decoding, judge = group
        rows.append(
            [
                origin,
                _checkpoint(generator, names) if generator else "its source",
                _decoding(decoding) if decoding else "–",
                _checkpoint(judge, names) if judge else "–",
                _count(count),
                _count(kept_by_writer[group]),
            ]
        )
    head = ["Texts", "Written by", "Decoding", "Judged by", "Number", "Kept"]
    return join([tag("h3", "Who wrote and who judged"), _grid(head, rows, figures=2)])


def _versions_table(versions: Sequence[Version]) -> Markup:
    rows = []
    for version in versions:
        by_origin, by_verdict = version.count("origin"), version.count("kept")
        counts = [*(by_origin[origin] for origin in ORIGINS), by_verdict[True], by_verdict[False]]
        rows.append(
            [
                version.dataset.name,
                tag("code", version.dataset.digest[:12]),
                _count(version.dataset.num_images),
                *(_count(count) if count else "–" for count in counts),
            ]
        )
    return _grid(["Version", "Digest", "Images", *(o.capitalize() for o in ORIGINS), "Kept", "Dropped"], rows, figures=6)


def _models_table(root: Path) -> Markup | None:
    names = model_names(root)
    if not names:
        return None
    rows = []
    for digest, name in sorted(names.items(), key=lambda item: item[1]):
        record = read_record(root / "models" / name)
        parents = [names.get(d, d[:12]) for d in record["inputs"].get("model", [])]
        weights = root / "models" / name / "model.safetensors"
        size = number(count_parameters(weights) / 1e6, 2) + " M" if weights.is_file() else "–"
        rows.append([name, tag("code", digest[:12]), record["stage"], ", ".join(parents) or "–", size])
    return join([tag("h3", "Models"), _grid(["Model", "Digest", "Made by", "From", "Parameters"], rows, figures=1)])


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], figures: int) -> Markup:
    """Give a table whose last `figures` columns are numbers."""
    first = len(head) - figures
    classes = [None if i < first else "figure" for i in range(len(head))]
    top = tag("tr", [tag("th", name, scope="col", class_=c) for name, c in zip(head, classes, strict=True)])
    body = [tag("tr", [tag("td", cell, class_=c) for cell, c in zip(row, classes, strict=True)]) for row in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", body)), class_="scroll")


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


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
