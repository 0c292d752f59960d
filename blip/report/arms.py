"""The arms of an experiment: models pre-trained on different corpora, their names and colours."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.report.records import read_record
from blip.stage import RECORD

CANDIDATE = "bootstrapped"

_KNOWN = {
    "unfiltered": ("Unfiltered", "series-orange"),
    "human": ("Human only", "series-slate"),
    CANDIDATE: ("Bootstrapped", "series-blue"),
}
_MORE = ("series-green", "series-purple", "series-yellow")


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: Of its folders.
        label: For people.
        series: Class of its colour.
        record: What made its pre-trained model (`stage.json`), empty where that is not here.
    """

    name: str
    label: str
    series: str
    record: Mapping[str, Any]


def read_arms(root: Path) -> list[Arm]:
    """Find the arms that were pre-trained or measured under `root`, the known ones first."""
    trained = {
        path.parent.name
        for path in root.glob(f"models/*/{RECORD}")
        if read_record(path.parent)["stage"] == "pretrain"
    }
    measured = {path.parent.parent.name for path in root.glob("results/*/*/metrics.json")} - {
        "comparison",
        "promotion",
    }
    found = trained | measured
    others = {
        name: (name, _MORE[i % len(_MORE)]) for i, name in enumerate(sorted(found - set(_KNOWN)))
    }
    looks = {**_KNOWN, **others}
    return [
        Arm(n, label, series, read_record(root / "models" / n))
        for n, (label, series) in looks.items()
        if n in found
    ]
