"""Starts what carries the journals of stages to MLflow, beside them and never in their way.

A stage writes its journal and knows nothing of a server. A *follower*, a process of low priority,
carries the journals of a `runs` folder to MLflow while the process that started it lives, and once
more when it has ended.
"""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blip.errors import ConfigError
from blip.files import write_json
from blip.integrations.tracking.settings import SETTINGS, TrackingSettings, load_settings
from blip.stage import Job

log = logging.getLogger(__name__)

MODE = "BLIP_TRACKING"
"""Environment variable: `follow` (or unset): a command that runs stages starts a follower;
`journal`: it does not, since whoever started it follows the same runs; `off`: nobody does."""

EXPERIMENTS = "experiments"

_PATIENCE = 3.0  # seconds that a command waits at its end for the last points to arrive


@contextlib.contextmanager
def tracked(job: Job, config: Mapping[str, Any]) -> Iterator[None]:
    """Have a stage followed while it runs, as part of its experiment.

    Args:
        job: The stage.
        config: The experiment's whole configuration, which its run in MLflow shows as params.

    Raises:
        ConfigError: `mlflow.yaml` or BLIP_TRACKING cannot be used.
    """
    if job.experiment:
        describe_experiment(job.runs, job.experiment, config)
    with followed(job.runs):
        yield


def describe_experiment(runs: Path, name: str, config: Mapping[str, Any]) -> None:
    """Keep the whole configuration of an experiment where the shipper finds it."""
    path = runs / EXPERIMENTS / f"{name}.json"
    if not path.exists():
        write_json(path, config)


@contextlib.contextmanager
def followed(runs: Path) -> Iterator[None]:
    """Follow all stages of a folder while the body runs; a body of many stages needs only one.

    Nothing is followed where BLIP_TRACKING says so, or there is no `mlflow.yaml`.

    Raises:
        ConfigError: `mlflow.yaml` or BLIP_TRACKING cannot be used.
    """
    mode = os.environ.get(MODE, "follow")
    if mode not in ("follow", "journal", "off"):
        raise ConfigError(f"{MODE}={mode}: must be follow, journal or off")
    if mode != "follow" or not SETTINGS.exists():
        yield
        return
    follower = start_follower(runs, load_settings())
    try:
        yield
    finally:
        follower.stop(_PATIENCE)


class Follower:
    """A process that carries journals to MLflow."""

    def __init__(self, runs: Path, process: subprocess.Popen[bytes]) -> None:
        self._runs = runs
        self._process = process

    def stop(self, timeout: float) -> None:
        """Have the last points carried; wait so many seconds, then let it go on in the background.

        Says so in the log where points are left for the next time.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            log.info("the last points go to MLflow in the background; see %s", log_file(self._runs))
            return
        if code:
            log.warning(
                "MLflow has not got everything: %s says why; `blip track` carries the rest",
                log_file(self._runs),
            )


def start_follower(runs: Path, settings: TrackingSettings) -> Follower:
    """Start a process that follows the stages of a folder until this one ends or stops it.

    It runs in a session of its own, so that Ctrl-C does not reach it, writes its words to
    `runs/tracking.log`, and holds none of our streams. The pipe to it stays open until it is to
    stop, and closes by itself if we are killed.
    """
    runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "blip.integrations.tracking.follower", str(runs)]
    with log_file(runs).open("ab") as words:
        process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        # Not in the arguments, which anybody may list: a URI may hold a password.
        process.stdin.write(settings.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    return Follower(runs, process)


def log_file(runs: Path) -> Path:
    """Give the file that followers write their words to."""
    return runs / "tracking.log"
