"""Stages as Jobs: begin one once, follow it to its end, take it back, tell how all of them are doing.

What becomes of a Job is read from the Job and its pods alone, anew at every look: a connection that
drops, or an API server that is away for a while, costs nothing but time.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Literal

from blip.integrations.cluster.api import Api, AwayError, Object, annotations
from blip.integrations.cluster.logs import Logs, label, parallel
from blip.integrations.cluster.manifests import STAGE
from blip.integrations.cluster.reasons import (
    CANCELLED,
    CODE,
    REASON,
    Ending,
    condition_of,
    ending,
    failure_of,
    hold_up,
    suspended,
    user_error,
)
from blip.integrations.launch import Say, StoppedError
from blip.torchrun import USER_ERROR

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
DRAIN_SECONDS = 10.0  # for the last lines of pods that ended
RECORDED = "blip/recorded"  # the annotation of a Job whose result has been recorded
STAGES = "app.kubernetes.io/name=blip,app.kubernetes.io/component=stage"

Begun = Literal["started", "joined", "taken"]


def submit(
    api: Api,
    job: Object,
    services: list[Object],
    can_be_taken: Callable[[Object], bool],
    stopped: threading.Event,
) -> Begun:
    """Begin a Job, unless one of its name, which is its digest, is there already.

    Args:
        api: The cluster.
        job: Its manifest.
        services: Those that it needs; they go when it goes.
        can_be_taken: Tells whether the result of one that ended well still serves. One whose result
            does not, and one that failed, make place for a new one.
        stopped: Once set, nothing is begun.

    Returns:
        `started`: it is new. `joined`: it was under way. `taken`: it had ended well.

    Raises:
        IntegrationError: The cluster refuses it, or does not answer.
        StoppedError: `stopped` was set while an old one went.
    """
    name = job["metadata"]["name"]
    while True:
        there = api.job(name)
        if there is None:
            created = api.create(job)
            if created is None:
                continue  # another one was faster
            for service in services:
                api.create(_owned(service, created))
            return "started"
        ended = ending(there, [])
        if "deletionTimestamp" not in there["metadata"]:
            if ended is None:
                return "joined"
            if ended.code == 0 and can_be_taken(there):
                return "taken"
        api.delete(name)
        if stopped.wait(POLL_SECONDS / 2):
            raise StoppedError("was not begun")


def _owned(manifest: Object, job: Object) -> Object:
    """Let an object go when its Job goes."""
    owner = {"apiVersion": "batch/v1", "kind": "Job"}
    owner |= {key: job["metadata"][key] for key in ("name", "uid")}
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}}


def follow(
    api: Api, name: str, say: Say, *, patience: float, stopped: threading.Event
) -> Ending | None:
    """Follow a Job to its end, however long the cluster does not answer.

    Args:
        api: The cluster.
        name: The Job.
        say: Told each line of its pods, and what becomes of them.
        patience: Seconds for which its pods may fail to begin; time in a queue does not count.
        stopped: Once set, nobody wants to know any more.

    Returns:
        How it ended; None when `stopped` was set before.

    Raises:
        IntegrationError: The cluster refuses to say.
    """
    idle_since = time.monotonic()
    told: set[str] = set()
    logs = Logs(api, say)
    try:
        while not stopped.is_set():
            with _patiently(say, told):
                job = api.job(name)
                if job is None:
                    return CANCELLED
                pods = api.pods(name)
                logs.attend(pods, parallel(job))
                ended = ending(job, pods) or user_error(pods)
                waits = hold_up(api, job, pods)
                if waits is None or suspended(job):
                    idle_since = time.monotonic()
                elif ended is None and time.monotonic() - idle_since > patience:
                    ended = Ending(USER_ERROR, f"{waits} (for {patience:g} s)")
                if ended is not None:
                    if condition_of(job) is None:
                        end(api, name, ended)
                    return ended
                _tell([*_news(job, pods), *([waits] if waits else [])], say, told)
            stopped.wait(POLL_SECONDS)
    finally:
        logs.leave(0 if stopped.is_set() else DRAIN_SECONDS)
    return None


def _news(job: Object, pods: list[Object]) -> Iterator[str]:
    for pod in pods:
        if failure := failure_of(pod):
            yield f"pod {label(pod)}: {failure.reason}; another one goes on"
    if parallel(job) and (done := job.get("status", {}).get("succeeded")):
        yield f"{done} of {job['spec'].get('completions')} pods are done"


def _tell(messages: list[str], say: Say, told: set[str]) -> None:
    for message in messages:
        if message not in told:
            say(message)
    told.update(messages)


@contextlib.contextmanager
def _patiently(say: Say, told: set[str]) -> Iterator[None]:
    """Wait out a cluster that does not answer, and say so each time that it begins."""
    away = "the cluster does not answer; waiting for it"
    try:
        yield
        told.discard(away)
    except AwayError as error:
        log.debug("%s", error)
        _tell([away], say, told)


def end(api: Api, name: str, why: Ending) -> None:
    """End a Job that would go on for nothing, and leave a note of why."""
    note = {CODE: str(why.code), REASON: why.reason}
    api.patch(name, {"metadata": {"annotations": note}, "spec": {"activeDeadlineSeconds": 1}})


def mark_recorded(api: Api, name: str) -> None:
    """Mark a Job as one whose result has been recorded."""
    api.patch(name, {"metadata": {"annotations": {RECORDED: "true"}}})


def cancel(api: Api, names: list[str]) -> None:
    """Delete Jobs and wait until all their pods have left.

    Raises:
        IntegrationError: The cluster refuses, or does not answer.
    """
    for name in names:
        api.delete(name)
    for name in names:
        while api.job(name) or api.pods(name):
            time.sleep(POLL_SECONDS / 2)


def of_stage(api: Api, stage: str | None) -> list[Object]:
    """Give the Jobs of a stage, or of all, the oldest first."""
    return [job for job in api.jobs(STAGES) if stage in (None, annotations(job).get(STAGE))]


def table(api: Api, found: list[Object]) -> Iterator[str]:
    """Tell how Jobs are doing, a line each: stage, state, age, name and, where there is one, the reason."""
    rows = [("STAGE", "STATE", "AGE", "JOB", "")]
    for job in found:
        pods = api.pods(job["metadata"]["name"])
        ended, waits = ending(job, pods), hold_up(api, job, pods)
        running = any(pod["status"].get("phase") == "Running" for pod in pods)
        state = ("done" if ended.code == 0 else "failed") if ended else "waiting"
        if ended is None and running:
            state, waits = "running", "; ".join(_news(job, pods))
        age = _age(job["metadata"]["creationTimestamp"])
        reason = ended.reason if ended else waits or ""
        rows.append((annotations(job).get(STAGE, ""), state, age, job["metadata"]["name"], reason))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for *columns, reason in rows:
        told = "  ".join(text.ljust(width) for text, width in zip(columns, widths, strict=True))
        yield f"{told}  {reason}".rstrip()


def _age(created: str) -> str:
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds())
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds // unit}{name}"
    return f"{max(seconds, 0)}s"
