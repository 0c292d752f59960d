"""Where a stage's command runs: on this machine, in a session of its own that ends as a whole."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Literal, Protocol

from blip.errors import TERMINATED, IntegrationError
from blip.integrations.versioning import Node

Say = Callable[[str], None]
Kind = Literal["local", "kubernetes"]

GRACE_SECONDS = 90.0  # from SIGTERM to SIGKILL: for a step and a checkpoint of gigabytes
LAST_WORDS_SECONDS = 10.0
TIMED_OUT = 124  # exit code, as of `timeout`


class StageFailedError(IntegrationError):
    """A stage's command that did not end well; `code` is its exit code, 128 + n for signal n."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class StoppedError(IntegrationError):
    """A stage that was stopped, or not begun, because the whole run is; or that was pre-empted.

    `code` is its exit code where it was pre-empted, else 0: the run's own signal says why.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class Launcher(Protocol):
    """A place for stages. Its work is named by the stage and the digest of all that it depends on."""

    def begun(self, node: Node, key: str) -> bool:
        """Tell whether an earlier run began this very work: its outputs may be in place already."""

    def launch(self, node: Node, key: str, say: Say) -> None:
        """Run a stage's command, or join the one that runs, to its end; its outputs are then in place.

        Args:
            node: The stage.
            key: The digest of its command and of everything that it depends on.
            say: Told each line of its output as it comes.

        Raises:
            StageFailedError: It ended with another code than 0, or at its timeout (code 124).
            StoppedError: `stop` was called, or the command was told to leave (code 143).
        """

    def recorded(self, node: Node, key: str) -> None:
        """Hear that the outputs of a launched stage are recorded, so that nobody comes back for them."""

    def stop(self) -> None:
        """End all that is under way, and begin nothing more."""


def open_launcher(kind: Kind, workspace: Path) -> Launcher:
    """Give the launcher of a kind for the stages of a workspace, the current directory.

    Raises:
        ConfigError: What the Jobs of the cluster look like cannot be read.
        IntegrationError: There is no cluster.
    """
    if kind == "kubernetes":
        from blip.integrations.cluster.launcher import KubernetesLauncher
        from blip.integrations.cluster.settings import load_cluster

        return KubernetesLauncher(workspace, load_cluster())
    return LocalLauncher(workspace, stage_environment(workspace))


def stage_environment(workspace: Path) -> dict[str, str]:
    """Build the environment of stages: this Python's commands, the workspace's code, no telemetry.

    The workspace's own package comes first on the path, so that the code that runs is the code that
    DVC recorded. What the user has set already stays, except where the stage could not work with
    it.
    """
    environment = {**TELEMETRY_OFF, **os.environ}
    environment["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(workspace), os.environ.get("PYTHONPATH")])
    )
    environment["PYTHONUNBUFFERED"] = "1"
    environment["BLIP_TRACKING"] = "journal"  # the run's own follower carries them to MLflow
    return environment


TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",  # MLflow takes no other spelling of true
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GX_ANALYTICS_ENABLED": "false",
}


class LocalLauncher:
    """Runs commands on this machine.

    Each is the leader of a session: a timeout, `stop` or its own end takes every process that it
    started along. Where the system can (Linux), it also ends when this process is killed without a
    chance to say so.
    """

    def __init__(self, workspace: Path, environment: Mapping[str, str]) -> None:
        self._workspace = workspace
        self._environment = dict(environment)
        self._children: dict[str, subprocess.Popen[str]] = {}
        self._lock = threading.RLock()  # a signal handler may stop what its own thread is launching
        self._stopped = False

    def begun(self, node: Node, key: str) -> bool:
        """Say no: what an earlier run began ended with it."""
        return False

    def recorded(self, node: Node, key: str) -> None:
        """Keep nothing in mind."""

    def launch(self, node: Node, key: str, say: Say) -> None:
        """Run a command to its end (see `Launcher.launch`)."""
        name, timeout = node.name, node.timeout
        child = self._start(node)
        last = [""]
        reader = threading.Thread(
            target=_pass_on, args=(child.stdout, say, last), name=f"output of {name}", daemon=True
        )
        reader.start()
        timed_out = False
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            _terminate(child)
        finally:
            _kill_group(child)  # whatever it left behind
            child.wait()
            reader.join(LAST_WORDS_SECONDS)
            with self._lock:
                del self._children[name]
        if self._stopped:
            raise StoppedError("was stopped")
        if timed_out:
            raise StageFailedError(f"took longer than its {timeout:g} s and was stopped", TIMED_OUT)
        code = _exit_code(child.returncode)
        if code == TERMINATED:
            raise StoppedError("was pre-empted: the next run goes on from where it was", code)
        if code:
            said = f": {last[0]}" if last[0] else ""
            raise StageFailedError(f"{_ending(child.returncode)}{said}", code)

    def stop(self) -> None:
        """Ask every stage to end, and make it after a grace period. Safe in a signal handler."""
        with self._lock:
            self._stopped = True
            children = list(self._children.values())
        for child in children:
            _signal_group(child, signal.SIGTERM)
            timer = threading.Timer(GRACE_SECONDS, _kill_group, [child])
            timer.daemon = True
            timer.start()

    def _start(self, node: Node) -> subprocess.Popen[str]:
        assert node.command is not None
        with self._lock:
            if self._stopped:
                raise StoppedError("was not begun")
            child = subprocess.Popen(
                _with_parent(node.command),
                cwd=self._workspace,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._children[node.name] = child
            return child


def _with_parent(command: str) -> list[str]:
    """Give the arguments that run a shell command, which ends with us where `setpriv` is there."""
    shell, setpriv = shell_arguments(command), shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--", *shell] if setpriv else shell


def shell_arguments(command: str) -> list[str]:
    """Give the arguments that run a command as a shell does, in the shell's place where it is one alone."""
    simple = not any(operator in command for operator in "\n;&|")
    return ["sh", "-c", f"exec {command}" if simple else command]


def _pass_on(stream: IO[str] | None, say: Say, last: list[str]) -> None:
    assert stream is not None
    with stream:
        for line in stream:
            if text := line.rstrip():
                say(text)
                last[0] = text


def _terminate(child: subprocess.Popen[str]) -> None:
    _signal_group(child, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_SECONDS)


def _kill_group(child: subprocess.Popen[str]) -> None:
    _signal_group(child, signal.SIGKILL)


def _signal_group(child: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _exit_code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    return f"was killed by {signal.Signals(-returncode).name}"
