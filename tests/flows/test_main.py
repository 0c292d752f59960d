"""`python -m flows`: what it cannot do is one message and exit code 2."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import __main__ as program
from flows.experiment import PARTS
from tests.flows.server import Server


def test_every_flow_can_be_named() -> None:
    assert set(program.FLOWS) == {"experiment", *PARTS}
    assert all(getattr(program.flows, name).name == name for name in program.FLOWS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "python -m flows takes install, or a flow (experiment, prepare, "),
        (["experiment"], "python -m flows takes install, or a flow"),
        (["train", "{}"], "python -m flows takes install, or a flow"),
        (["experiment", "{"], "parameters '{' are not JSON: Expecting property name"),
        (["experiment", "[1]"], "parameters '[1]' are not a JSON object"),
        (["experiment", '{"slot": 1}'], "slot"),
    ],
)
def test_what_cannot_be_done_is_one_message(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["flows", *arguments])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("blip: ")
    assert message in error


@pytest.mark.slow
def test_a_server_that_wants_a_password_is_one_message(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path, PREFECT_SERVER_API_AUTH_STRING="someone:secret")
    monkeypatch.setenv("PREFECT_API_URL", server.url)
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    root = Path(__file__).parents[2]
    (toy.root / "k8s").symlink_to(root / "k8s")
    (toy.root / "jobs.yaml").symlink_to(root / "k8s/overlays/local/jobs.yaml")
    try:
        server.start()
        for arguments in (["install"], ["experiment", "{}"]):
            command = [sys.executable, "-m", "flows", *arguments]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 2, result.stderr
            assert "set PREFECT_API_AUTH_STRING" in result.stderr.splitlines()[-1]
            assert "Traceback" not in result.stderr
    finally:
        server.stop()
