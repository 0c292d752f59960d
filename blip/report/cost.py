"""What the experiment took: time and speed of every stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from blip.config import Config
from blip.report.axes import number
from blip.report.figure import Section
from blip.report.markup import Markup, join, tag
from blip.report.records import read_record
from blip.stage import RECORD
from blip.tracker import read_journal


@dataclass(frozen=True)
class StageCost:
    """What one stage took.

    Attributes:
        name: Its readable name.
        started: Seconds since the epoch.
        seconds: At work, all resumptions and parts together; None where it was not run here but restored.
        speeds: Units a second by unit, e.g. `images`; that of one of the parts where there are some.
    """

    name: str
    started: float
    seconds: float | None
    speeds: Mapping[str, float]


def cost_section(root: Path, config: Config) -> Section | None:
    """Show time and speed of every stage; None where no stage has left its record."""
    costs = read_costs(root)
    if not costs:
        return None
    ran = [cost for cost in costs if cost.seconds is not None]
    absent = [cost.name for cost in costs if cost.seconds is None]
    total = clock(sum(cost.seconds or 0.0 for cost in ran))
    threads = f"{config.threads} CPU thread{'s' if config.threads > 1 else ''} each"
    lead = f"{len(ran)} stages took {total} in all, with {threads}." if ran else ""
    elsewhere = f"Not run here, but restored: {', '.join(absent)}." if absent else ""
    content = [tag("p", f"{lead} {elsewhere}".strip()), _table(ran) if ran else None]
    return Section("cost", "What it took", join(content))


def read_costs(root: Path) -> list[StageCost]:
    """Read what the stages whose outputs are under `root` took, in the order they began."""
    costs = []
    for path in _records(root):
        record = read_record(path.parent)
        run_dir = root / "runs" / f"{record['stage']}-{record['key'][:16]}"
        parts = path.parent.relative_to(root).parts[1:]
        what = [part for part in parts if part not in ("comparison", "promotion", "validation")]
        name = " ".join([record["stage"], *what])
        costs.append(_read_cost(name, sorted(run_dir.glob("journal*.jsonl"))))
    return sorted(costs, key=lambda cost: (cost.seconds is None, cost.started, cost.name))


def clock(seconds: float) -> str:
    """Write a duration: `8.3 s`, `4:05`, `1:02:33`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _records(root: Path) -> Sequence[Path]:
    found = [
        root / "tokenizer" / RECORD,
        *root.glob(f"datasets/*/{RECORD}"),
        *root.glob(f"models/*/{RECORD}"),
    ]
    return sorted(path for path in [*found, *root.glob(f"results/**/{RECORD}")] if path.is_file())


def _read_cost(name: str, journals: Sequence[Path]) -> StageCost:
    """Add up the work that the journals of a stage and of its parts tell of."""
    read = [events for journal in journals if (events := read_journal(journal)[0])]
    if not read:
        return StageCost(name, 0.0, None, {})
    speeds: dict[str, list[float]] = {}
    for metric, value in (
        v for events in read for e in events for v in e.get("values", {}).items()
    ):
        group, _, measure = metric.partition("/")
        if group == "perf" and measure.endswith("_per_second"):
            speeds.setdefault(measure.removesuffix("_per_second"), []).append(value)
    typical = {unit: median(values) for unit, values in speeds.items()}
    began = min(events[0]["time"] for events in read)
    return StageCost(name, began, sum(map(_seconds, read)), typical)


def _seconds(events: Sequence[Mapping[str, Any]]) -> float:
    """Add up the work between each start and the event that came last before the next."""
    seconds, began, last = 0.0, events[0]["time"], events[0]
    for event in events:
        if event["event"] == "start":
            again = last.get("status") == "FINISHED"  # it was forced: only the last run counts
            seconds, began = 0.0 if again else seconds + last["time"] - began, event["time"]
        last = event
    return seconds + last["time"] - began


def _table(costs: Sequence[StageCost]) -> Markup:
    longest = max(cost.seconds or 0.0 for cost in costs) or 1.0
    heads = [tag("th", name, scope="col") for name in ("Stage", "", "Time", "Speed")]
    rows = [_row(cost, (cost.seconds or 0.0) / longest) for cost in costs]
    return tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="costs")


def _row(cost: StageCost, share: float) -> Markup:
    speeds = [f"{number(v, 0 if v >= 10 else 1)} {unit}/s" for unit, v in cost.speeds.items()]
    return tag(
        "tr",
        tag("td", cost.name),
        tag("td", tag("i", style=f"width: {share:.1%}")),
        tag("td", clock(cost.seconds or 0.0), class_="figure"),
        tag("td", ", ".join(speeds)),
    )
