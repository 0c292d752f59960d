"""What the experiment took: time per stage, speed, size of the models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from blip.config import Config
from blip.report.axes import number
from blip.report.charts import Bar, bar_chart
from blip.report.figure import Figure, Section
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
        seconds: At work, all resumptions together; None where it was not run here but restored.
        speeds: Units a second by unit, e.g. `images`.
    """

    name: str
    started: float
    seconds: float | None
    speeds: Mapping[str, float]


def cost_section(root: Path, config: Config) -> Section | None:
    """Draw the time per stage and say the speeds; None where no stage has left its record."""
    costs = read_costs(root)
    if not costs:
        return None
    ran = [cost for cost in costs if cost.seconds is not None]
    figures = []
    if ran:
        bars = [
            Bar(cost.name, [("series-blue", cost.seconds or 0.0)], clock(cost.seconds or 0.0))
            for cost in ran
        ]
        figures.append(
            Figure("time", [bar_chart("Time per stage", bars, 208, 64, width=420)], columns=1)
        )
    absent = [cost.name for cost in costs if cost.seconds is None]
    total = sum(cost.seconds or 0.0 for cost in ran)
    threads = f"{config.threads} CPU thread{'s' if config.threads > 1 else ''} a stage"
    lead = f"{len(ran)} stages took {clock(total)} in all, with {threads}." if ran else ""
    elsewhere = f"Not run here, but restored: {', '.join(absent)}." if absent else ""
    charts = [figure.html() for figure in figures]
    content = [
        tag("p", f"{lead} {elsewhere}".strip()),
        tag("div", charts, _speeds(ran), class_="columns"),
    ]
    return Section("cost", "What it took", join(content), figures)


def read_costs(root: Path) -> list[StageCost]:
    """Read what the stages whose outputs are under `root` took, in the order they began."""
    costs = []
    for path in _records(root):
        record = read_record(path.parent)
        journal = root / "runs" / f"{record['stage']}-{record['key'][:16]}" / "journal.jsonl"
        parts = path.parent.relative_to(root).parts[1:]
        what = [part for part in parts if part not in ("comparison", "promotion", "validation")]
        name = " ".join([record["stage"], *what])
        costs.append(_read_cost(name, journal))
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


def _read_cost(name: str, journal: Path) -> StageCost:
    """Add up the work between each start and the event that came last before the next."""
    events = read_journal(journal)[0] if journal.is_file() else []
    if not events:
        return StageCost(name, 0.0, None, {})
    seconds, began, last = 0.0, events[0]["time"], events[0]["time"]
    speeds: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "start":
            seconds, began = seconds + last - began, event["time"]
        last = event["time"]
        for key, value in event.get("values", {}).items():
            if key.startswith("perf/") and key.endswith("_per_second"):
                speeds.setdefault(key.removeprefix("perf/").removesuffix("_per_second"), []).append(
                    value
                )
    return StageCost(
        name,
        events[0]["time"],
        seconds + last - began,
        {unit: median(v) for unit, v in speeds.items()},
    )


def _speeds(costs: Sequence[StageCost]) -> Markup | None:
    rows = [
        tag(
            "tr",
            tag("td", cost.name),
            tag("td", number(value, 0 if value >= 10 else 1), class_="figure"),
            tag("td", f"{unit}/s"),
        )
        for cost in costs
        for unit, value in cost.speeds.items()
    ]
    return tag("div", tag("h3", "Speed"), tag("table", tag("tbody", rows))) if rows else None
