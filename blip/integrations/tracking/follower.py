"""The process that follows stages: carries their journals to MLflow and watches what they use.

`python -m blip.integrations.tracking.follower RUNS --parent PID`, started by
`blip.integrations.tracking`; stdin gives the settings as a line of JSON, and its end says stop.
MLflow is imported once there is something to carry.
"""

import argparse
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from blip.errors import BlipError
from blip.integrations.tracking.settings import TrackingSettings
from blip.integrations.tracking.shipping import ShipReport, ship
from blip.integrations.tracking.watch import Watch

log = logging.getLogger(__name__)

_INTERVAL = 2.0  # seconds between passes
_LONGEST = 60.0  # seconds between attempts while the server is away
_PATIENCE = 10.0  # seconds of further attempts once everything has ended


def follow(
    runs: Path, settings: TrackingSettings, parent: int, stop: threading.Event
) -> ShipReport:
    """Carry journals until the parent is gone or `stop` is set, and then a last time.

    Args:
        runs: The folder of the stages' working state.
        settings: Where to.
        parent: Process id of the one that started us.
        stop: Set it to have the last pass made.

    Returns:
        The last pass: what waits there is left for the next follower.
    """
    watch = Watch(runs)
    pause = _INTERVAL
    next_pass = 0.0
    while not stop.wait(_INTERVAL if next_pass else 0.2) and os.getppid() == parent:
        watch.look()
        if time.monotonic() < next_pass:
            continue
        report = _pass(runs, settings, last=False)
        pause = min(2 * pause, _LONGEST) if report.waiting else _INTERVAL
        next_pass = time.monotonic() + pause
    deadline = time.monotonic() + _PATIENCE
    while True:
        watch.look()
        report = _pass(runs, settings, last=True)
        if not report.problem or time.monotonic() > deadline:
            return report
        time.sleep(_INTERVAL)


def _pass(runs: Path, settings: TrackingSettings, *, last: bool) -> ShipReport:
    try:
        report = ship(runs, settings, last=last)
    except BlipError as error:  # another follower is at it; at our end we wait for our turn
        return ShipReport(0, (), str(error))
    if report.problem:
        log.warning("%d stages wait: %s", len(report.waiting), report.problem)
    return report


def _await_end(pipe: BinaryIO, stop: threading.Event) -> None:
    pipe.read()
    stop.set()


def main() -> int:
    """Follow until told to stop; 0 if everything arrived, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    os.nice(5)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    settings = TrackingSettings.model_validate_json(sys.stdin.buffer.readline())
    stop = threading.Event()
    threading.Thread(target=_await_end, args=(sys.stdin.buffer, stop), daemon=True).start()
    return 1 if follow(arguments.runs, settings, arguments.parent, stop).problem else 0


if __name__ == "__main__":
    sys.exit(main())
