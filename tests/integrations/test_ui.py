"""Both servers for real, from the command's start to Ctrl-C."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from blip.errors import IntegrationError
from blip.integrations.tracking.settings import load_settings
from blip.integrations.tracking.shipping import ship
from blip.integrations.ui import serve
from blip.stage import Job, run_stage

ROOT = Path(__file__).parents[2]

SERVE = """
import functools
from blip.integrations.tracking.settings import load_settings
from blip.integrations.ui import serve
serve(load_settings(), functools.partial(print, flush=True))
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, and no server named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    shutil.copy(ROOT / "mlflow.yaml", tmp_path)
    return tmp_path


def test_servers_elsewhere_are_only_pointed_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9/")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:10/api")
    lines: list[str] = []
    serve(load_settings(), lines.append)
    assert lines == [
        "MLflow   http://127.0.0.1:9/#/experiments?workflowType=machine_learning",
        "Prefect  http://127.0.0.1:10",
    ]


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:10/api")
    Path("mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(IntegrationError, match=r"MLflow ended: .*"):
        serve(load_settings(), lambda line: None)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_both_answer_until_they_are_told_to_end(ending: signal.Signals) -> None:
    with run_stage(Job("select", Path("datasets/web"), {}, {}, experiment="demo-1")):
        pass
    assert ship(Path("runs"), load_settings(), last=True).problem == ""
    command = [sys.executable, "-c", SERVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert "Ctrl-C" in process.stdout.readline()
            mlflow = re.fullmatch(r"MLflow +(\S+)\n", process.stdout.readline())
            prefect = re.fullmatch(r"Prefect +(\S+)\n", process.stdout.readline())
            assert mlflow
            assert prefect
            assert mlflow[1].endswith("/#/experiments/1/runs?workflowType=machine_learning")
            address = mlflow[1].partition("#")[0]
            with urllib.request.urlopen(address) as page:
                assert b"<title>MLflow</title>" in page.read()
            search = json.dumps({"experiment_ids": ["1"]}).encode()
            request = urllib.request.Request(
                f"{address}api/2.0/mlflow/runs/search", search, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as answer:
                assert len(json.loads(answer.read())["runs"]) == 2
            with urllib.request.urlopen(prefect[1]) as page:
                assert b"Prefect" in page.read()
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) >= 2
        finally:
            process.send_signal(ending)
        assert process.wait(300) == 0
    _, alive = psutil.wait_procs(children, timeout=120)
    assert alive == []
