"""Waits for a Prefect server that is away, so that nothing it should be told is lost."""

from collections.abc import Callable
from threading import Event

from prefect.client.orchestration import get_client

LOOK_SECONDS = 1.0  # how often a server that does not answer is asked again
PATIENCE_SECONDS = 10.0  # how long it may take for its answer


def await_server(stopped: Event, say: Callable[[str], None]) -> None:
    """Wait until the server answers, or `stopped` is set.

    Prefect fails a task that begins while its server is away, and a few seconds after one has ended
    it gives up telling so.
    """
    told = False
    while not (stopped.is_set() or _answers()):
        if not told:
            say("the Prefect server does not answer; the stages under way go on")
        told = True
        stopped.wait(LOOK_SECONDS)


def _answers() -> bool:
    """Ask by a client of its own: one that was answered before tries again for a minute."""
    with get_client(sync_client=True, httpx_settings={"timeout": PATIENCE_SECONDS}) as client:
        return client.api_healthcheck() is None
