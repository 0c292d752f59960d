"""Takes turns on a cluster's GPUs: one training at a time in a queue, whichever flow runs ask."""

import contextlib
from collections.abc import Iterator
from threading import Event

from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError
from prefect.concurrency.sync import concurrency

from blip.integrations.cluster.manifests import TOGETHER
from blip.integrations.cluster.settings import Cluster
from blip.integrations.launch import Launcher, Say, StoppedError
from blip.integrations.versioning import Node
from flows.server import await_server

LOOK_SECONDS = 10.0  # how often one that waits sees whether it still should
LEASE_SECONDS = 90.0  # a turn whose flow run died is free again after these


def limit_name(cluster: Cluster) -> str:
    """Name the concurrency limit of a cluster's queue; `python -m flows install` makes it."""
    return f"training@{cluster.queue or cluster.namespace}"


class Turns:
    """A launcher that starts a training on GPUs when no other one is under way in its queue."""

    def __init__(self, launcher: Launcher, cluster: Cluster, stopped: Event) -> None:
        self._launcher = launcher
        self._cluster = cluster
        self._stopped = stopped

    def begun(self, node: Node, key: str) -> bool:
        """Tell whether an earlier run began this very work (see `Launcher.begun`)."""
        return self._launcher.begun(node, key)

    def launch(self, node: Node, key: str, say: Say) -> None:
        """Run a stage to its end (see `Launcher.launch`), in its turn."""
        with self._turn(node.name, say):
            self._launcher.launch(node, key, say)

    def recorded(self, node: Node, key: str) -> None:
        """Hear that the outputs of a launched stage are recorded (see `Launcher.recorded`)."""
        self._launcher.recorded(node, key)

    def stop(self) -> None:
        """End all that is under way, and begin nothing more."""
        self._launcher.stop()

    @contextlib.contextmanager
    def _turn(self, name: str, say: Say) -> Iterator[None]:
        if name.split("@")[0] not in TOGETHER or not self._cluster.place(name).gpus:
            yield
            return
        with contextlib.ExitStack() as stack:
            waited = False
            while True:
                turn = concurrency(
                    limit_name(self._cluster),
                    timeout_seconds=LOOK_SECONDS,
                    lease_duration=LEASE_SECONDS,
                    raise_on_lease_renewal_failure=False,  # a server that restarts stops no training
                )
                try:
                    stack.enter_context(turn)
                    break
                except AcquireConcurrencySlotTimeoutError:
                    if not waited:
                        say("waiting for its turn: another training has the GPUs of this queue")
                    waited = True
                    if self._stopped.is_set():
                        raise StoppedError("was not begun") from None
            stack.callback(await_server, self._stopped, say)  # which takes the turn back
            yield
