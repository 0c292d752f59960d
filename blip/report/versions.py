"""The dataset versions of an experiment and the texts in them, counted as the report needs them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from blip.data.dataset import MANIFEST, Dataset, open_dataset
from blip.report.arms import Arm
from blip.report.records import read_record

_ORDER = ("web", "human", "test", "synthetic", "scored", "bootstrapped")


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

    def only(self, belongs: Callable[[Group], bool]) -> "Version":
        """Give the version with some of its texts."""
        return replace(self, groups=Counter({g: n for g, n in self.groups.items() if belongs(g)}))

    def trained_on(self) -> Counter[str]:
        """Count the texts that training reads, by origin: all but the dropped."""
        return self.only(lambda group: group.kept is not False).count("origin")

    @property
    def judged(self) -> bool:
        """Whether its texts carry verdicts."""
        return any(group.kept is not None for group in self.groups)


def read_versions(root: Path) -> list[Version]:
    """Read the dataset versions under `root`, in the order of their making."""
    found = {path.parent.name: path.parent for path in sorted(root.glob(f"datasets/*/{MANIFEST}"))}
    names = [*(name for name in _ORDER if name in found), *(n for n in found if n not in _ORDER)]
    return [_read_version(found[name]) for name in names]


def read_corpus(arm: Arm, versions: Sequence[Version]) -> Counter[str]:
    """Count the texts of an arm's corpus, by origin; empty where its data are not here."""
    by_output = {version.output: version for version in versions if version.output}
    texts: Counter[str] = Counter()
    for digest in arm.record.get("inputs", {}).get("data", []):
        if digest not in by_output:
            return Counter()
        texts += by_output[digest].trained_on()
    return texts


def _read_version(path: Path) -> Version:
    dataset = open_dataset(path)
    groups: Counter[Group] = Counter()
    for shard in dataset.shards:  # one at a time: a large version does not fit into memory
        counted = shard.read_captions().group_by(list(Group._fields)).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            groups[Group(**{field: row[field] for field in Group._fields})] += row["count_all"]
    return Version(dataset, str(read_record(path).get("output", "")), groups)
