"""The toy project of the integrations, and one Prefect server for the whole session."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "toy_project", Path(__file__).parents[1] / "integrations" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_toy_project = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_toy_project)
toy_template, toy = _toy_project.toy_template, _toy_project.toy


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Prefect server of its own, on a free loopback port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
    }
    address = ["--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", *address],
            env=environment,
            stdout=log,
            stderr=log,
        )
    api = f"http://127.0.0.1:{port}/api"
    try:
        _wait_for(api, server, home / "log")
        yield api
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(api: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(f"{api}/health", timeout=2)
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
