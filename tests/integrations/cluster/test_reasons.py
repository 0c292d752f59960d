"""How a Job ended, and what it waits for, read from objects as clusters give them; tests/kube has real ones."""

import copy
from typing import Any

import pytest

from blip.integrations.cluster.reasons import Ending, ending, failure_of, hold_up, stuck

EVICTED = {
    "phase": "Failed",
    "reason": "Evicted",
    "message": "The node was low on resource: memory. ",
}
JOB = {
    "metadata": {"name": "blip-x", "annotations": {}},
    "spec": {"completions": 1, "parallelism": 1, "activeDeadlineSeconds": 60},
    "status": {},
}


def job(condition: str | None = None, reason: str = "", **metadata: Any) -> dict[str, Any]:
    made: dict[str, Any] = copy.deepcopy(JOB)
    made["metadata"] |= metadata
    if condition:
        made["status"]["conditions"] = [
            {"type": condition, "status": "True", "reason": reason, "message": "so"}
        ]
    return made


def pod(status: dict[str, Any]) -> dict[str, Any]:
    container = {"name": "stage", "resources": {"limits": {"memory": "2Gi"}}}
    return {
        "metadata": {"name": "blip-x-abcde"},
        "spec": {"containers": [container]},
        "status": status,
    }


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    state = {"exitCode": code, "reason": reason, "message": message}
    return pod(
        {
            "phase": "Failed",
            "containerStatuses": [{"name": "stage", "state": {"terminated": state}}],
        }
    )


class Silent:
    """A cluster that has no warnings."""

    def last_warning(self, name: str) -> str:
        return ""


@pytest.mark.parametrize(
    ("failed", "code", "reason"),
    [
        (ended(3, message="one\ntwo\n"), 3, "ended with exit code 3: two"),
        (ended(2), 2, "ended with exit code 2"),
        (ended(137, "OOMKilled"), 137, "OOMKilled: needs more than its memory limit of 2Gi"),
        (ended(137), 137, "was killed by SIGKILL"),
        (ended(143), 143, "was told to leave: the next run goes on from where it was"),
        (ended(255), 255, "ended with exit code 255"),
        (pod(EVICTED), 143, "Evicted: The node was low on resource: memory."),
        (pod({"phase": "Failed", "reason": "UnexpectedAdmissionError"}), 1, "UnexpectedAdmissionError: "),
    ],
)  # fmt: skip
def test_a_failed_pod_says_why(failed: dict[str, Any], code: int, reason: str) -> None:
    assert failure_of(failed) == Ending(code, reason)


@pytest.mark.parametrize(
    ("cause", "told"),
    [("PreemptionByScheduler", "Preempted"), ("DeletionByTaintManager", "Evicted")],
)
def test_a_disrupted_pod_is_no_failure_of_its_own(cause: str, told: str) -> None:
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": cause,
        "message": "so it is",
    }
    failed = ended(137)
    failed["status"]["conditions"] = [condition]
    assert failure_of(failed) == Ending(143, f"{told}: so it is")


def test_a_job_ends_as_its_conditions_say_and_with_the_cause_rather_than_who_suffered() -> None:
    assert ending(job(), [ended(3)]) is None
    assert ending(job("Complete"), [ended(3)]) == Ending(0)
    failed = job("Failed", "BackoffLimitExceeded")
    assert ending(failed, []) == Ending(1, "BackoffLimitExceeded: so")
    suffered = [ended(75), ended(143), ended(137, "OOMKilled")]
    found = ending(failed, suffered)
    assert found is not None
    assert found.code == 137
    late = ending(job("Failed", "DeadlineExceeded"), [ended(143)])
    assert late == Ending(124, "DeadlineExceeded: took longer than its 60 s")
    noted = job("Failed", "DeadlineExceeded", annotations={"blip/code": "2", "blip/reason": "why"})
    assert ending(noted, []) == Ending(2, "why")
    deleted = job("Failed", "BackoffLimitExceeded", deletionTimestamp="2026-01-01T00:00:00Z")
    assert ending(deleted, [ended(143)]) == Ending(143, "was cancelled: its Job was deleted")


def test_what_a_pod_waits_for_is_named() -> None:
    message = "0/3 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu."
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
    }
    waiting = pod({"phase": "Pending", "conditions": [condition]})
    assert stuck(waiting) == f"Unschedulable: not enough cpu, nvidia.com/gpu: {message}"
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling"}}
    container = {"name": "stage", "image": "blip:typo", "state": state}
    pulling = pod({"phase": "Pending", "containerStatuses": [container]})
    assert stuck(pulling) == "ImagePullBackOff: image blip:typo: Back-off pulling"
    container["state"] = {"waiting": {"reason": "ContainerCreating"}}
    assert stuck(pulling) is None


def test_a_queue_is_waited_in_and_one_running_pod_is_enough() -> None:
    queued = job()
    queued["spec"]["suspend"] = True
    queued["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    silent: Any = Silent()
    assert hold_up(silent, queued, []) == "queued: suspended until there is room in gpus"
    assert hold_up(silent, job(), []) is None
    waiting = pod(
        {"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "Unschedulable"}]}
    )
    assert hold_up(silent, job(), [waiting]) == "Unschedulable: "
    assert hold_up(silent, job(), [waiting, pod({"phase": "Running"})]) is None
