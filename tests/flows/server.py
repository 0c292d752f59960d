"""A real Prefect server on a loopback port of its own, that can be killed and started again; and what tests ask it."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.ports import free_port

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


class Server:
    """A Prefect server whose database is a file in its home, with settings of its own."""

    def __init__(self, home: Path, **settings: str) -> None:
        self._home = home
        self._port = free_port()
        self._settings = settings
        self.url = f"http://127.0.0.1:{self._port}/api"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--no-ui"]
        log = self._home / "log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", *address],
                env={
                    **os.environ,
                    "PREFECT_HOME": str(self._home),
                    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                    "DO_NOT_TRACK": "true",
                    **self._settings,
                },
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
                return
            except OSError:
                assert self._process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)

    def stop(self) -> None:
        """End it in good order, if it will."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
            self.kill()

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()


class Api:
    """What a test asks of the server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def last_flow_run(self) -> dict[str, Any]:
        body = {"sort": "EXPECTED_START_TIME_DESC", "limit": 1}
        run: dict[str, Any] = self.post("flow_runs/filter", body)[0]
        return run

    def tasks(self, flow_run: dict[str, Any], wanted: int) -> dict[str, dict[str, Any]]:
        """Give the task runs by name; they reach the server a moment after the flow's end."""
        body = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
        deadline = time.monotonic() + 300
        while True:
            runs = {run["name"]: run for run in self.post("task_runs/filter", body)}
            if len(runs) == wanted and all(run["state_type"] in ENDED for run in runs.values()):
                return runs
            assert time.monotonic() < deadline, {n: r["state_name"] for n, r in runs.items()}
            time.sleep(0.2)


def prefect(*arguments: str) -> None:
    """Call Prefect's command line."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@contextlib.contextmanager
def worker() -> Iterator[None]:
    """A process worker of the pool, in the current directory."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "blip"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
