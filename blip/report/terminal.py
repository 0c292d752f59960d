"""What an experiment gained, as a table for the terminal: the end of `blip run`."""

from pathlib import Path
from typing import Any

from blip.files import read_json

ARMS = ("unfiltered", "human", "bootstrapped")
COLUMNS = (  # heading, task, metric
    ("TR@1", "retrieval", "tr_r1"),
    ("IR@1", "retrieval", "ir_r1"),
    ("CIDEr", "captioning", "cider"),
    ("BLEU-4", "captioning", "bleu4"),
)


def format_results(root: Path) -> str:
    """Give the table of arms, the filter's precision and recall, and where to look next."""
    lines = [f"{'arm':<14}" + "".join(f"{heading:>22}" for heading, _, _ in COLUMNS)]
    for arm in ARMS:
        cells = [
            _cell(root / "results" / arm / task / "metrics.json", task, name)
            for _, task, name in COLUMNS
        ]
        lines.append(f"{arm:<14}" + "".join(f"{cell:>22}" for cell in cells))
    lines += ["", *_filter(root / "results/filter/metrics.json")]
    page = root / "reports/report.html"
    if page.exists():
        lines.append(f"report   {page}")
    lines.append("more     make ui (MLflow and Prefect), blip lineage, dvc metrics diff")
    return "\n".join(lines)


def _cell(path: Path, task: str, name: str) -> str:
    if not path.exists():
        return "-"
    return _interval(read_json(path)[task][name])


def _interval(value: dict[str, Any] | float) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"
    return f"{value:.1f}"


def _filter(path: Path) -> list[str]:
    if not path.exists():
        return []
    measured = read_json(path)["filter"]
    shown = [
        f"{name} {measured[name]['value']:.2f} [{measured[name]['low']:.2f}, {measured[name]['high']:.2f}]"
        for name in ("precision", "recall", "auc")
        if isinstance(measured.get(name), dict)
    ]
    return [f"filter   {', '.join(shown)}", ""] if shown else []
