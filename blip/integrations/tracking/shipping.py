"""Carries the journals of stages to MLflow: as often as needed, nothing lost, nothing twice.

    runs/<verb>-<key16>/journal.jsonl   what the stage said
    runs/<verb>-<key16>/journal-*.jsonl what its parts said
    runs/<verb>-<key16>/system.jsonl    what the follower saw of its process
    runs/<verb>-<key16>/shipped.json    how far all have been carried, and to which run
    runs/experiments/<name>.json        the whole configuration of an experiment, for its parent run

Runs nest: experiment > stage; what parts say belongs to their stage's run. A stage that was killed
and resumed continues its run; one that is done again after it had finished gets a new run. Shipping
may be killed and repeated at any moment: a run is found again by its key and the time it began, and
MLflow keeps one of equal points.
"""

import dataclasses
import heapq
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.errors import DataError, IntegrationError
from blip.files import digest_json, lock, read_json, write_json
from blip.integrations.tracking import EXPERIMENTS
from blip.integrations.tracking.server import MlflowServer, Point, RunGoneError
from blip.integrations.tracking.settings import TrackingSettings
from blip.integrations.tracking.watch import JOURNAL, SYSTEM

log = logging.getLogger(__name__)

SHIPPED = "shipped.json"
JOURNALS = "journal*.jsonl"

RESULTS = "results/"
"""Metrics of this group at step 0, and artifacts of this folder, also go to the experiment's run:
the summary by which experiments are compared."""

_BATCH = 1000  # points in one request, MLflow's limit


@dataclass(frozen=True)
class ShipReport:
    """What one pass carried, and what still waits."""

    points: int
    waiting: tuple[str, ...]
    problem: str = ""


@dataclass
class Shipped:
    """How far a stage's journals have been carried, and to which runs."""

    store: str
    run_id: str = ""
    experiment_run_id: str = ""
    experiment_open: bool = False
    status: str = ""
    time: float = 0.0
    offsets: dict[str, int] = field(default_factory=dict)


def pending(runs: Path, settings: TrackingSettings) -> list[Path]:
    """List the stages' folders whose journals hold events that this store has not got yet."""
    return [folder for folder in _folders(runs) if _waits(folder, _load(folder, settings))]


def ship(runs: Path, settings: TrackingSettings, *, last: bool = False) -> ShipReport:
    """Carry what is new in the journals to MLflow.

    A server that is away or refuses is a line in the report, never an error: everything stays for
    the next time.

    Args:
        runs: The folder of the stages' working state.
        settings: Where to.
        last: No stage is followed any more: experiments without a running stage are over.

    Raises:
        BlipError: Another process is shipping this folder.
    """
    with lock(runs / "locks" / "shipping", f"carrying {runs} to MLflow"):
        folders = pending(runs, settings)
        if not folders and not (last and _open_experiments(runs, settings)):
            return ShipReport(0, ())
        points, waiting, problem = 0, [], ""
        try:
            server = MlflowServer(settings)
        except IntegrationError as error:
            return ShipReport(0, tuple(folder.name for folder in folders), str(error))
        for folder in folders:
            try:
                points += _ship_stage(server, runs, folder, settings)
            except IntegrationError as error:
                waiting.append(folder.name)
                problem = str(error)
                if not server.answers():
                    waiting = [f.name for f in folders[folders.index(folder) :]]
                    break
        if last and not problem:
            try:
                _close_experiments(server, runs, settings)
            except IntegrationError as error:
                problem = str(error)
        return ShipReport(points, tuple(waiting), problem)


def _ship_stage(server: MlflowServer, runs: Path, folder: Path, settings: TrackingSettings) -> int:
    try:
        return _Shipment(server, runs, folder, _load(folder, settings)).send()
    except RunGoneError:
        log.info("%s: its run was deleted from MLflow; it is carried there anew", folder.name)
        return _Shipment(server, runs, folder, Shipped(_store(settings))).send()


class _Shipment:
    """One stage's journals on their way."""

    def __init__(self, server: MlflowServer, runs: Path, folder: Path, shipped: Shipped) -> None:
        self.server = server
        self.runs = runs
        self.folder = folder
        self.shipped = shipped
        self.points: list[Point] = []
        self.sent = 0

    def send(self) -> int:
        """Carry everything that is new; give the number of points."""
        for source, event, offset in self._events():
            if event["event"] == "metrics":
                self._take(event)
            else:
                self._flush()
                self._handle(source, event)
            self.shipped.offsets[source] = offset
            if len(self.points) >= _BATCH:
                self._flush()
        self._flush()
        return self.sent

    def _events(self) -> Iterator[tuple[str, dict[str, Any], int]]:
        """Merge all journals by time: file, event, and the file's offset after it."""
        sources = [
            _read(path, self.shipped.offsets.get(path.name, 0)) for path in _journals(self.folder)
        ]
        return heapq.merge(*sources, key=lambda item: float(item[1]["time"]))

    def _take(self, event: dict[str, Any]) -> None:
        milliseconds = int(event["time"] * 1000)
        self.points += [
            Point(name, value, milliseconds, int(event["step"]))
            for name, value in event["values"].items()
        ]

    def _handle(self, source: str, event: dict[str, Any]) -> None:
        match event["event"]:
            case "start":
                self._begin(event)
            case "artifact":
                self._artifact(event)
            case "end" if source in (JOURNAL, SYSTEM) or self._breaks_off(event):
                self.server.end_run(
                    self.shipped.run_id, event["status"], event["time"], event.get("output")
                )
                self.shipped.status = event["status"]
                self.shipped.time = event["time"]

    def _breaks_off(self, event: dict[str, Any]) -> bool:
        """Tell whether the end of a part is one of its stage: only the stage itself finishes it."""
        return self.shipped.status == "RUNNING" and event["status"] != "FINISHED"

    def _begin(self, event: dict[str, Any]) -> None:
        shipped = self.shipped
        if event["experiment"]:
            document = self.runs / EXPERIMENTS / f"{event['experiment']}.json"
            config = read_json(document) if document.exists() else {}
            shipped.experiment_run_id = self.server.open_experiment(
                event["experiment"], config, event
            )
            shipped.experiment_open = True
        if shipped.run_id and shipped.status != "FINISHED":
            self.server.reopen_run(shipped.run_id, event)
        else:
            shipped.run_id = self.server.open_stage(event, shipped.experiment_run_id)
        shipped.status = "RUNNING"
        shipped.time = event["time"]

    def _artifact(self, event: dict[str, Any]) -> None:
        """Log a file or folder; what is gone or damaged is passed over, since nothing will mend it."""
        path = _settled(Path(event["path"]))
        if not path.exists():
            log.warning("%s: %s is gone; it cannot be logged", self.folder.name, path)
            return
        try:
            self._log(path, event["folder"])
        except DataError as error:
            if not path.exists():
                raise IntegrationError(f"{path}: was renamed while it was read") from error
            log.warning("%s: %s cannot be logged: %s", self.folder.name, path, error)

    def _log(self, path: Path, folder: str) -> None:
        """Log a file or folder; of a dataset version or an evaluation, a table of what is in it."""
        from blip.data.dataset import MANIFEST
        from blip.integrations.tracking.example_table import SOURCE

        if (path / MANIFEST).exists():
            self.server.log_captions(self.shipped.run_id, path, folder)
        elif path.name == SOURCE:
            self.server.log_examples(self.shipped.run_id, path, folder)
        else:
            self.server.log_artifact(self.shipped.run_id, path, folder)
            if f"{folder}/".startswith(RESULTS) and self.shipped.experiment_run_id:
                self.server.log_artifact(self.shipped.experiment_run_id, path, folder)

    def _flush(self) -> None:
        """Send the points at hand, and write down that they have arrived."""
        self.server.log_points(self.shipped.run_id, self.points)
        summary = [p for p in self.points if p.step == 0 and p.name.startswith(RESULTS)]
        if summary and self.shipped.experiment_run_id:
            self.server.log_points(self.shipped.experiment_run_id, summary)
        self.sent += len(self.points)
        self.points.clear()
        write_json(self.folder / SHIPPED, dataclasses.asdict(self.shipped))


def _close_experiments(server: MlflowServer, runs: Path, settings: TrackingSettings) -> None:
    """End the runs of experiments that no stage is running for."""
    for run_id, stages in _open_experiments(runs, settings).items():
        states = [shipped for _, shipped in stages]
        if any(shipped.status == "RUNNING" for shipped in states):
            continue
        latest = max(states, key=lambda shipped: shipped.time)
        server.end_run(run_id, latest.status, latest.time)
        for folder, shipped in stages:
            shipped.experiment_open = False
            write_json(folder / SHIPPED, dataclasses.asdict(shipped))


def _open_experiments(
    runs: Path, settings: TrackingSettings
) -> dict[str, list[tuple[Path, Shipped]]]:
    """Give the stages of every experiment's run that has not been ended."""
    found: dict[str, list[tuple[Path, Shipped]]] = {}
    for folder in _folders(runs):
        shipped = _load(folder, settings)
        if shipped.experiment_open:
            found.setdefault(shipped.experiment_run_id, []).append((folder, shipped))
    return found


def _folders(runs: Path) -> list[Path]:
    return sorted({journal.parent for journal in runs.glob(f"*/{JOURNALS}")})


def _journals(folder: Path) -> list[Path]:
    """Give the journals of a stage: its own, those of its parts, and what was seen of it."""
    return [*sorted(folder.glob(JOURNALS)), folder / SYSTEM]


def _load(folder: Path, settings: TrackingSettings) -> Shipped:
    """Read how far a stage was carried; a new store begins at the beginning."""
    file = folder / SHIPPED
    if file.exists():
        shipped = Shipped(**read_json(file))
        if shipped.store == _store(settings):
            return shipped
    return Shipped(_store(settings))


def _store(settings: TrackingSettings) -> str:
    """Name the store and experiment without what may be secret in its URI."""
    return digest_json([settings.tracking_uri, settings.experiment])[:16]


def _waits(folder: Path, shipped: Shipped) -> bool:
    """Tell whether whole events lie behind the offsets; a torn last line waits for its end."""
    for path in _journals(folder):
        start = shipped.offsets.get(path.name, 0)
        if path.exists() and path.stat().st_size > start and next(_read(path, start), None):
            return True
    return False


def _read(path: Path, offset: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Read a journal's whole events from an offset on: file name, event, offset after it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield path.name, json.loads(line), offset


def _settled(path: Path) -> Path:
    """Find a file that its stage handed over while its output had a temporary name."""
    if path.exists():
        return path
    parts = [
        part[1 : -len(".partial")] if part.startswith(".") and part.endswith(".partial") else part
        for part in path.parts
    ]
    return Path(*parts)
