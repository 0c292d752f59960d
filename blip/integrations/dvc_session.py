"""How DVC is used, by `versioning`, `pinning` and `sharing` alone.

All of it works on the workspace that is the current directory (DVC's own interface does too), opens
DVC anew for every call (a shared one loses lock entries), and lets one call of this process in at a
time.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from blip.errors import IntegrationError

P = ParamSpec("P")
R = TypeVar("R")

one_at_a_time = threading.RLock()  # of this process, for what reads or writes DVC's files


def through_dvc(function: Callable[P, R]) -> Callable[P, R]:
    """Let one call in at a time, and give DVC's refusals as an `IntegrationError`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        from dvc.exceptions import DvcException

        with one_at_a_time:
            try:
                return function(*args, **kwargs)
            except DvcException as error:
                raise IntegrationError(f"DVC: {_causes(error)}") from error

    return call


@contextlib.contextmanager
def opened(level: int = logging.WARNING) -> Iterator[Any]:
    """Open the workspace; of what DVC itself has to say, only `level` and above is logged."""
    from dvc.logger import set_loggers_level
    from dvc.repo import Repo

    with set_loggers_level(level), contextlib.closing(Repo(_wait_for_lock=True)) as repo:
        yield repo


@contextlib.contextmanager
def locked(repo: Any) -> Iterator[None]:
    """Hold the workspace against other processes that use DVC."""
    from dvc.repo import lock_repo

    with lock_repo(repo):
        yield


def find_stage(repo: Any, name: str) -> Any:
    """Find a stage by its name."""
    (stage,) = repo.stage.collect(name)
    return stage


def _causes(error: BaseException) -> str:
    """Give an error's message with those it came from, on one line."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause:
        text = " ".join(str(cause).split())
        if text and text not in messages:
            messages.append(text)
        cause = cause.__cause__
    return ": ".join(messages)
