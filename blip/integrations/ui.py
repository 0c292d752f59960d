"""Starts the MLflow UI and the Prefect UI on free ports of this machine, as long as wanted."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from blip.errors import IntegrationError
from blip.integrations.tracking.settings import QUIET, TrackingSettings

_HOST = "127.0.0.1"
_START = 180.0  # seconds that a server may take to answer
_STOP = 10.0  # seconds that it may take to end

# MLflow's job runner judges the answers of language models: 240 MB that nobody needs here.
_MLFLOW = {**QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
_PREFECT = {"DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def serve(settings: TrackingSettings, say: Callable[[str], None]) -> None:
    """Start both servers, say where to look, stay until Ctrl-C or a termination signal, end them.

    A server that runs elsewhere (an http `tracking_uri`, PREFECT_API_URL) is only pointed to.

    Args:
        settings: `mlflow.yaml`.
        say: Takes the lines for the user.

    Raises:
        IntegrationError: A server did not start, or ended.
    """
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, signal.default_int_handler)
        mlflow = _start_mlflow(stack, settings)
        prefect = _start_prefect(stack)
        servers = [server for server in (mlflow, prefect) if isinstance(server, _Server)]
        if servers:
            say("starting the servers; Ctrl-C ends them")
        say(f"MLflow   {runs_page(_await(mlflow), settings.experiment)}")
        say(f"Prefect  {_await(prefect)}")
        while servers:
            time.sleep(1.0)
            for server in servers:
                server.check()


def runs_page(url: str, experiment: str) -> str:
    """Give the address of an experiment's runs; without the query MLflow shows it as an LLM's."""
    name = urllib.parse.quote(experiment)
    answer = _get(f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}")
    place = f"/{json.loads(answer)['experiment']['experiment_id']}/runs" if answer else ""
    return f"{url}/#/experiments{place}?workflowType=machine_learning"


@dataclass
class _Server:
    """A server of ours and its children."""

    name: str
    url: str
    health: str
    process: subprocess.Popen[bytes]
    words: IO[bytes]

    def check(self) -> None:
        """Make sure that it is running.

        Raises:
            IntegrationError: It ended; its last words say why.
        """
        if self.process.poll() is not None:
            self.words.seek(0)
            last = self.words.read().decode(errors="replace").strip().splitlines()[-3:]
            raise IntegrationError(f"{self.name} ended: {' | '.join(last) or 'without a word'}")

    def stop(self) -> None:
        """End it and its children, by force where they will not."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _start_mlflow(stack: contextlib.ExitStack, settings: TrackingSettings) -> "_Server | str":
    """Start MLflow's server on the database; give its address if it runs elsewhere."""
    if urllib.parse.urlsplit(settings.tracking_uri).scheme in ("http", "https"):
        return settings.tracking_uri.rstrip("/")
    port = _free_port()
    arguments = ["mlflow", "server", "--host", _HOST, "--port", str(port), "--workers", "1"]
    if settings.artifact_location:
        arguments += ["--default-artifact-root", settings.artifact_location]
    # The store in the environment: the list of processes, which anybody may read, shows arguments.
    environment = {**_MLFLOW, "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri}
    return _start(stack, "MLflow", arguments, environment, port, "/health")


def _start_prefect(stack: contextlib.ExitStack) -> "_Server | str":
    """Start Prefect's server on its own database; give its address if it runs elsewhere."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url.rstrip("/").removesuffix("/api")
    port = _free_port()
    arguments = ["prefect", "server", "start", "--host", _HOST, "--port", str(port)]
    return _start(stack, "Prefect", arguments, _PREFECT, port, "/api/health")


def _start(
    stack: contextlib.ExitStack,
    name: str,
    arguments: list[str],
    environment: Mapping[str, str],
    port: int,
    health: str,
) -> _Server:
    words = tempfile.TemporaryFile()  # noqa: SIM115 (it closes with the stack)
    stack.enter_context(words)
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=words,
        stderr=words,
        env={**os.environ, **environment},
        start_new_session=True,  # Ctrl-C reaches us alone; we end it and its children
    )
    server = _Server(name, f"http://{_HOST}:{port}", health, process, words)
    stack.callback(server.stop)
    return server


def _await(server: "_Server | str") -> str:
    """Wait until a server answers; give its address."""
    if isinstance(server, str):
        return server
    deadline = time.monotonic() + _START
    while _get(server.url + server.health) is None:
        server.check()
        if time.monotonic() > deadline:
            raise IntegrationError(f"{server.name} does not answer after {_START:.0f} s")
        time.sleep(0.3)
    return server.url


def _get(url: str) -> Any:
    """Give what an address answers; None where it does not, or with an error."""
    try:
        with urllib.request.urlopen(url, timeout=10.0) as response:  # noqa: S310 (our own addresses)
            return response.read()
    except (urllib.error.URLError, OSError):
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
