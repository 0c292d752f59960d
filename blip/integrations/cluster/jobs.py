"""Stages as Jobs: begin one once, follow it to its end, say why it ended, take it back.

What becomes of a Job is read from the Job and its pods alone, anew at every look: a connection that
drops, or an API server that is away for a while, costs nothing but time.
"""

import contextlib
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from blip.errors import IntegrationError
from blip.integrations.cluster.api import Api, AwayError, Object
from blip.integrations.cluster.manifests import STAGE
from blip.integrations.launch import PREEMPTED, TIMED_OUT, Say, StoppedError
from blip.torchrun import LOST_PEER, USER_ERROR

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
DRAIN_SECONDS = 10.0  # for the last lines of pods that ended
OUT_OF_MEMORY = 137
CODE, REASON, RECORDED = "blip/code", "blip/reason", "blip/recorded"  # annotations of ours
STAGES = "app.kubernetes.io/name=blip,app.kubernetes.io/component=stage"
INDEX = "batch.kubernetes.io/job-completion-index"
BAD_START = {  # why a container waits, where waiting alone will not help
    "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError",
    "RegistryUnavailable", "CreateContainerConfigError", "CreateContainerError", "RunContainerError",
}  # fmt: skip
PUSHED_OUT = {"Evicted", "Preempting", "NodeLost", "NodeShutdown", "Shutdown", "Terminated"}

Begun = Literal["started", "joined", "taken"]


@dataclass(frozen=True)
class Ending:
    """How a Job ended: its exit code and, where that is not 0, why, in one line."""

    code: int
    reason: str = ""


CANCELLED = Ending(PREEMPTED, "was cancelled: its Job was deleted")


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
    logs = _Logs(api, say)
    try:
        while not stopped.is_set():
            with _patiently(say, told):
                job = api.job(name)
                if job is None:
                    return CANCELLED
                pods = api.pods(name)
                logs.attend(pods, _parallel(job))
                ended = ending(job, pods) or _user_error(pods)
                waits = hold_up(api, job, pods)
                if waits is None or suspended(job):
                    idle_since = time.monotonic()
                elif ended is None and time.monotonic() - idle_since > patience:
                    ended = Ending(USER_ERROR, f"{waits} (for {patience:g} s)")
                if ended is not None:
                    if _condition(job) is None:
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
    if _parallel(job) and (done := job.get("status", {}).get("succeeded")):
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


def ending(job: Object, pods: list[Object]) -> Ending | None:
    """Tell how a Job ended, from itself and its pods; None while it goes on."""
    noted = annotations(job)
    if REASON in noted:
        return Ending(int(noted[CODE]), noted[REASON])
    condition = _condition(job)
    if condition is None:
        return None
    if condition["type"] == "Complete":
        return Ending(0)
    if "deletionTimestamp" in job["metadata"]:  # which its pods took for a pre-emption
        return CANCELLED
    if condition.get("reason") == "DeadlineExceeded":
        seconds = job["spec"].get("activeDeadlineSeconds")
        return Ending(TIMED_OUT, f"DeadlineExceeded: took longer than its {seconds} s")
    failures = [failure for pod in pods if (failure := failure_of(pod))]
    if failures:  # what others died of, rather than that they lost a peer or were told to leave
        return min(failures, key=lambda failure: failure.code in (LOST_PEER, PREEMPTED))
    return Ending(1, f"{condition.get('reason')}: {_line(condition.get('message', ''))}")


def _condition(job: Object) -> Object | None:
    """Give the condition that says that a Job has ended."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return None


def _user_error(pods: list[Object]) -> Ending | None:
    """Find an error that would only come again, on a cluster too old to know that it should not try."""
    failures = (failure_of(pod) for pod in pods)
    return next((each for each in failures if each and each.code == USER_ERROR), None)


def failure_of(pod: Object) -> Ending | None:
    """Tell why a pod failed; None if it did not, or not yet."""
    status = pod["status"]
    for condition in status.get("conditions", []):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            what = "Preempted" if "Preempt" in condition.get("reason", "") else "Evicted"
            return Ending(PREEMPTED, f"{what}: {_line(condition.get('message', ''))}")
    if status.get("phase") != "Failed":
        return None
    if status.get("reason") in PUSHED_OUT:
        return Ending(PREEMPTED, f"{status['reason']}: {_line(status.get('message', ''))}")
    if status.get("reason") == "DeadlineExceeded":
        return Ending(TIMED_OUT, f"DeadlineExceeded: {_line(status.get('message', ''))}")
    for container in status.get("containerStatuses", []):
        ended = container["state"].get("terminated")
        if ended and ended["exitCode"]:
            return _crash(ended, _memory(pod, container["name"]))
    return Ending(1, f"{status.get('reason', 'Failed')}: {_line(status.get('message', ''))}")


def _crash(ended: Object, memory: str) -> Ending:
    code = int(ended["exitCode"])
    if ended.get("reason") == "OOMKilled":
        return Ending(OUT_OF_MEMORY, f"OOMKilled: needs more than its memory limit of {memory}")
    said = ended.get("message", "").strip().splitlines()[-1:]
    if code == PREEMPTED:
        return Ending(code, "was told to leave: the next run goes on from where it was")
    how = f"ended with exit code {code}"
    if code > 128:
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(code - 128).name}"
    return Ending(code, ": ".join([how, *said]))


def _memory(pod: Object, container: str) -> str:
    limits = {
        c["name"]: c.get("resources", {}).get("limits", {}) for c in pod["spec"]["containers"]
    }
    return str(limits.get(container, {}).get("memory", "its node"))


def hold_up(api: Api, job: Object, pods: list[Object]) -> str | None:
    """Say what keeps a Job's pods from beginning; None where one has begun, or nothing is amiss yet."""
    if suspended(job):
        queue = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name", "")
        return f"queued: suspended until there is room{f' in {queue}' if queue else ''}"
    phases = {pod["metadata"]["name"]: pod["status"].get("phase") for pod in pods}
    waiting = [pod for pod in pods if phases[pod["metadata"]["name"]] == "Pending"]
    if "Running" in phases.values():
        return None
    if found := next(filter(None, map(stuck, waiting)), None):
        return found
    silent = waiting[0] if waiting else None if pods else job  # a quota may keep it from any pod
    return api.last_warning(silent["metadata"]["name"]) or None if silent else None


def suspended(job: Object) -> bool:
    """Tell whether a Job waits in a queue."""
    return bool(job["spec"].get("suspend"))


def stuck(pod: Object) -> str | None:
    """Say what a pod waits for that may never come; None if it simply has not begun."""
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            message = _line(condition.get("message", ""))
            lacking = list(dict.fromkeys(re.findall(r"Insufficient ([\w./-]*\w)", message)))
            what = f"not enough {', '.join(lacking)}: " if lacking else ""
            return f"Unschedulable: {what}{message}"
    containers = pod["status"].get("initContainerStatuses", [])
    for container in [*containers, *pod["status"].get("containerStatuses", [])]:
        waiting = container["state"].get("waiting", {})
        if waiting.get("reason") in BAD_START:
            image = f"image {container['image']}: " if "mage" in waiting["reason"] else ""
            return f"{waiting['reason']}: {image}{_line(waiting.get('message', ''))}"
    return None


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


def said(api: Api, job: Object) -> Iterator[str]:
    """Give what the pods of a Job have said so far, pod by pod."""
    for pod in api.pods(job["metadata"]["name"]):
        prefix = f"[{label(pod)}] " if _parallel(job) else ""
        for _, line in api.log(pod["metadata"]["name"]):
            yield prefix + line


def _age(created: str) -> str:
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds())
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds // unit}{name}"
    return f"{max(seconds, 0)}s"


def annotations(job: Object) -> dict[str, str]:
    """Give the annotations of an object."""
    return dict(job["metadata"].get("annotations") or {})


def _parallel(job: Object) -> bool:
    return max(job["spec"].get("completions") or 1, job["spec"].get("parallelism") or 1) > 1


def _line(message: str) -> str:
    return " ".join(message.split())


class _Logs:
    """Passes on what pods say, each read by a thread of its own, however often the connection drops."""

    def __init__(self, api: Api, say: Say) -> None:
        self._api, self._say = api, say
        self._readers: dict[str, threading.Thread] = {}
        self._ended: set[str] = set()
        self._left = threading.Event()

    def attend(self, pods: list[Object], parallel: bool) -> None:
        """Read pods that have begun, and note those that have ended."""
        for pod in pods:
            name, phase = pod["metadata"]["name"], pod["status"].get("phase")
            if phase in ("Succeeded", "Failed"):
                self._ended.add(name)
            if phase != "Pending" and name not in self._readers:
                prefix = f"[{label(pod)}] " if parallel else ""
                reader = threading.Thread(
                    target=self._read, args=(name, prefix), name=f"log of {name}", daemon=True
                )
                self._readers[name] = reader
                reader.start()

    def leave(self, seconds: float) -> None:
        """Wait, at most so long, for what the pods said last."""
        self._left.set()
        deadline = time.monotonic() + seconds
        for reader in self._readers.values():
            reader.join(max(0.0, deadline - time.monotonic()))

    def _read(self, name: str, prefix: str) -> None:
        since = ""
        whole = False
        while not whole:
            last = name in self._ended or self._left.is_set()
            try:
                for when, line in self._api.log(name, since, follow=not last):
                    since = when
                    if line:
                        self._say(prefix + line)
                whole = last
            except AwayError:
                whole = self._left.is_set()
            except IntegrationError as error:
                self._say(f"{prefix}cannot be read: {error}")
                return
            if not whole:
                self._left.wait(POLL_SECONDS / 2)


def label(pod: Object) -> str:
    """Name a pod among those of its Job: by its index, else by the end of its name."""
    name = str(pod["metadata"]["name"])
    return annotations(pod).get(INDEX) or name.rpartition("-")[2]
