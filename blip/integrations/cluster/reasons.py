"""Why a Job ended, and what it waits for, in one line, from the Job and its pods as the cluster gives them."""

import contextlib
import re
import signal
from dataclasses import dataclass

from blip.errors import TERMINATED
from blip.integrations.cluster.api import Api, Object, annotations
from blip.integrations.cluster.manifests import QUEUE
from blip.integrations.launch import TIMED_OUT
from blip.torchrun import LOST_PEER, USER_ERROR

CODE, REASON = "blip/code", "blip/reason"  # the annotations of a Job that was ended for a reason
OUT_OF_MEMORY = 137
BAD_START = {  # why a container waits, where waiting alone will not help
    "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError",
    "RegistryUnavailable", "CreateContainerConfigError", "CreateContainerError", "RunContainerError",
}  # fmt: skip
PUSHED_OUT = {"Evicted", "Preempting", "NodeLost", "NodeShutdown", "Shutdown", "Terminated"}


@dataclass(frozen=True)
class Ending:
    """How a Job ended: its exit code and, where that is not 0, why, in one line."""

    code: int
    reason: str = ""


CANCELLED = Ending(TERMINATED, "was cancelled: its Job was deleted")


def ending(job: Object, pods: list[Object]) -> Ending | None:
    """Tell how a Job ended, from itself and its pods; None while it goes on."""
    noted = annotations(job)
    if REASON in noted:
        return Ending(int(noted[CODE]), noted[REASON])
    condition = condition_of(job)
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
        return min(failures, key=lambda failure: failure.code in (LOST_PEER, TERMINATED))
    return Ending(1, f"{condition.get('reason')}: {_message(condition)}")


def condition_of(job: Object) -> Object | None:
    """Give the condition that says that a Job has ended."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return None


def user_error(pods: list[Object]) -> Ending | None:
    """Find an error that would only come again, on a cluster too old to know that it should not try."""
    failures = (failure_of(pod) for pod in pods)
    return next((each for each in failures if each and each.code == USER_ERROR), None)


def failure_of(pod: Object) -> Ending | None:
    """Tell why a pod failed; None if it did not, or not yet."""
    status = pod["status"]
    for condition in status.get("conditions", []):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            what = "Preempted" if "Preempt" in condition.get("reason", "") else "Evicted"
            return Ending(TERMINATED, f"{what}: {_message(condition)}")
    if status.get("phase") != "Failed":
        return None
    if status.get("reason") in PUSHED_OUT:
        return Ending(TERMINATED, f"{status['reason']}: {_message(status)}")
    if status.get("reason") == "DeadlineExceeded":
        return Ending(TIMED_OUT, f"DeadlineExceeded: {_message(status)}")
    for container in status.get("containerStatuses", []):
        ended = container["state"].get("terminated")
        if ended and ended["exitCode"]:
            return _crash(ended, _memory(pod, container["name"]))
    return Ending(1, f"{status.get('reason', 'Failed')}: {_message(status)}")


def _crash(ended: Object, memory: str) -> Ending:
    code = int(ended["exitCode"])
    if ended.get("reason") == "OOMKilled":
        return Ending(OUT_OF_MEMORY, f"OOMKilled: needs more than its memory limit of {memory}")
    said = ended.get("message", "").strip().splitlines()[-1:]
    if code == TERMINATED:
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
        queue = job["metadata"].get("labels", {}).get(QUEUE, "")
        return f"queued: suspended until there is room{f' in {queue}' if queue else ''}"
    if any(pod["status"].get("phase") == "Running" for pod in pods):
        return None
    waiting = [pod for pod in pods if pod["status"].get("phase") == "Pending"]
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
            message = _message(condition)
            lacking = list(dict.fromkeys(re.findall(r"Insufficient ([\w./-]*\w)", message)))
            what = f"not enough {', '.join(lacking)}: " if lacking else ""
            return f"Unschedulable: {what}{message}"
    containers = pod["status"].get("initContainerStatuses", [])
    for container in [*containers, *pod["status"].get("containerStatuses", [])]:
        waiting = container["state"].get("waiting", {})
        if waiting.get("reason") in BAD_START:
            image = f"image {container['image']}: " if "mage" in waiting["reason"] else ""
            return f"{waiting['reason']}: {image}{_message(waiting)}"
    return None


def _message(found: Object) -> str:
    """Give what the cluster says of something, in one line."""
    return " ".join(found.get("message", "").split())
