"""Where a stage says its numbers: a journal on disk, which outlives the process and any server.

The journal is the truth; `blip.integrations.tracking` carries it to MLflow, at its own pace and as often as needed.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """What a stage may report while it runs."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Report numbers at a step; names are `group/name`, units in the name."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Hand over a finished file or folder to be kept with the run, under `folder`."""


class NullTracker:
    """A tracker that keeps nothing, for library use."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Drop the numbers."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Drop the artifact."""


class Journal:
    """An append-only file of events, one JSON object a line, each written at once.

    Events: `start` (stage, name, key, experiment, params, inputs, manifest), `metrics` (step, values), `artifact`
    (path, folder), `end` (status, output). Every event carries `time` in seconds since the epoch. A stage that is
    killed and resumed appends to the same journal; a point that is written twice carries the same step.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self.path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def start(self, **description: Any) -> None:
        """Say which stage begins (or goes on), with what."""
        self._write("start", description)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Report numbers at a step."""
        finite = {name: float(v) for name, v in values.items() if math.isfinite(v)}
        self._write("metrics", {"step": step, "values": finite})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Hand over a finished file or folder."""
        self._write("artifact", {"path": str(path.resolve()), "folder": folder})

    def end(self, status: Status, output: str | None = None) -> None:
        """Say how the stage ended, with the digest of what it made, and close."""
        self._write("end", {"status": status, "output": output})
        self._file.close()

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a killed writer left without its end."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def read_journal(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read the whole events of a journal from a byte offset on; give them and the offset after the last one."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)
