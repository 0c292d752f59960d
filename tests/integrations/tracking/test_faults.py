"""Stages beside a server that is down from the start, or slow: they run as fast as without one."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blip.integrations.tracking.settings import TrackingSettings, load_settings, quiet_mlflow
from blip.integrations.tracking.shipping import pending

from .conftest import Server, curve, runs_of, wait_until

RUNS = Path("runs")
POINTS = 60

# Says a number every twentieth of a second; tells how long all its words took, and its end.
STAGE = """
import json, sys, time
from pathlib import Path
from blip.integrations.tracking import tracked
from blip.stage import Job, run_stage
name, points = sys.argv[1], int(sys.argv[2])
job = Job("pretrain", Path("models") / name, {}, {"name": name}, experiment="demo-1a2b3c4d")
spent = 0.0
with tracked(job, {"seed": 7}):
    with run_stage(job) as stage:
        for step in range(points):
            began = time.perf_counter()
            stage.journal.metrics({"train/loss": step / 7, "optim/lr": 0.1}, step)
            spent += time.perf_counter() - began
            time.sleep(0.05)
        (stage.out / "done").touch()
    ended = time.perf_counter()
print(json.dumps([spent, time.perf_counter() - ended]))
"""


class Proxy:
    """Stands before the server: hangs up while `down`, and holds every request for `delay` seconds."""

    def __init__(self, server: str) -> None:
        self.down, self.delay, self.held = True, 0.0, 0
        self._port = int(server.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def answers(self) -> bool:
        """Tell whether the server behind is there."""
        try:
            self._connect().close()
        except OSError:
            return False
        return True

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self.down:
                return
            with contextlib.suppress(OSError), self._connect() as server:
                back = threading.Thread(target=self._pump, args=(server, client, False))
                back.start()
                self._pump(client, server, True)
                back.join()

    def _pump(self, source: socket.socket, target: socket.socket, holds: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if holds:
                    self.held += 1
                    time.sleep(self.delay)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
    yield proxy
    proxy.close()


def run(name: str) -> tuple[float, float]:
    """Run a stage; give the seconds that its journal took in all, and those of its end."""
    done = subprocess.run(
        [sys.executable, "-c", STAGE, name, str(POINTS)], capture_output=True, text=True, check=True
    )
    spent, leaving = json.loads(done.stdout)
    return spent, leaving


@pytest.mark.slow
def test_a_server_down_from_the_start_and_then_slow_holds_nothing_up_and_gets_all(
    settings: TrackingSettings, server: Server, proxy: Proxy
) -> None:
    quiet_mlflow()
    from mlflow import MlflowClient

    # Measured: 0.006 s for all words of a stage and 3.0 s of patience at its end, both times; the
    # bounds are for a busy machine.
    spent, leaving = run("down")
    assert spent < 2.0
    assert leaving < 20.0
    assert Path("models/down/stage.json").exists()
    assert len(pending(RUNS, load_settings())) == 1

    server.start()
    direct: Any = MlflowClient(server.address)
    wait_until(proxy.answers)
    proxy.down, proxy.delay = False, 0.5
    spent, leaving = run("slow")
    assert spent < 2.0
    assert leaving < 20.0

    wait_until(lambda: [r.info.status for r in runs_of(direct)] == ["FINISHED"] * 2)
    wait_until(lambda: not pending(RUNS, load_settings()))
    assert proxy.held >= 10  # it was slow indeed
    for run_ in runs_of(direct):
        expected = [(step, step / 7) for step in range(POINTS)]
        assert curve(direct, run_, "train/loss") == expected
        names = {file.path for file in direct.list_artifacts(run_.info.run_id)}
        assert "manifest.json" in names
