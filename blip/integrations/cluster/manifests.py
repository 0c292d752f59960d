"""The manifests of a stage: plain documents that `kubectl apply -f -` takes. Nothing here talks to a cluster.

- A stage is one Job of one pod.
- A training or an evaluation over several nodes is an Indexed Job, a pod a node, which find each other at the name
  that a headless Service gives the first of them.
- Ingesting, captioning and scoring over parts are an Indexed Job, a pod a part, and the stage's own Job after it,
  which finds all shards finished and puts them together.

Who is started again. A pod restarts nothing (`restartPolicy: Never`, torchrun without restarts): the Job does, by
the exit code. 2 is the user's error and fails the Job at once; what came from outside (pre-emption, a drained or
lost node, 143) and what another pod's end caused (75) is not counted; all else, out of memory too, is, up to
`retries`. Parts have nothing to do with each other, so each has `retries` of its own (`backoffLimitPerIndex`), and
the shards of those that succeed stay.

Nodes must begin together, as a process group cannot be joined later. Where a pod ends, the others lose it within a
minute and end with 75, and all meet again as new pods, which go on from the last checkpoint. They meet by torchrun's
`c10d` rendezvous, whose agents notice when the first pod, which holds it, is gone: a new pod that comes while the
old ones are leaving ends with 75, too, and comes again. (By `--master-addr` it would wait for those who had left, as
measured, until a timeout of minutes.) Restarts inside of a pod would be counted from 0 by a new one beside it, and
the two never meet. Ranks follow the pods' names, so the first pod has rank 0, which writes: once it has succeeded
the Job is done (`successPolicy`), whatever became of the others in their last second.
"""

import math
import re
import shlex
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import yaml

from blip.errors import TERMINATED, ConfigError
from blip.files import digest_json
from blip.integrations.cluster.pods import CONTAINER, Manifest, pod
from blip.integrations.cluster.settings import BucketStorage, Cluster, Place, SharedStorage
from blip.integrations.versioning import Node
from blip.torchrun import LOST_PEER, USER_ERROR

TOGETHER = frozenset({"pretrain", "finetune", "evaluate"})  # verbs whose processes are one stage
PARTED = frozenset({"ingest", "caption", "score"})  # verbs that take `--part I/N`

KEY, STAGE, COMMAND, AFTER = "blip/key", "blip/stage", "blip/command", "blip/after"
QUEUE = "kueue.x-k8s.io/queue-name"
INDEX = "JOB_COMPLETION_INDEX"  # of a pod of an Indexed Job, in its environment
PORT = 29500
TORCHRUN = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # who meets anew finds nothing of the last time
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # no stack traces of lost connections, which are to be expected
}
LAST_WORDS = 10  # seconds of the grace that torchrun leaves itself
IN_POD = "blip.integrations.cluster.workspace"  # brings the workspace, and takes the result away
IN_IMAGE = PurePath("/workspace")

MAX_LABEL = 63
MAX_STAGE = 30  # of a name: `-parts`, a pod's number and its five random letters still go behind


def render(
    node: Node,
    key: str,
    cluster: Cluster,
    workspace: PurePath,
    *,
    nodes: int | None = None,
    gpus: int | None = None,
    parts: int | None = None,
) -> list[Manifest]:
    """Give the manifests of a stage, in the order in which they are to be applied.

    Args:
        node: The stage.
        key: Its digest, which tells equal work.
        cluster: What the cluster's Jobs look like.
        workspace: The folder that the stage runs in, as the pod sees it.
        nodes: Pods that do the stage together, instead of the cluster's number for it.
        gpus: GPUs a pod, likewise.
        parts: Pods that share out the shards, likewise.

    Returns:
        The Job, for several nodes after its Service; for parts, their Job and then that of the rest, whose
        annotation `blip/after` names the one to wait for.

    Raises:
        ConfigError: The stage does not go over nodes, GPUs or parts, or the storage is not fit for it.
    """
    given = {"nodes": nodes, "gpus": gpus, "parts": parts}
    place = cluster.place(node.name).model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    _check(node, place, cluster, workspace)
    assert node.command is not None
    name = job_name(node.name, key and digest_json([key, str(workspace)]))  # each writes in its own
    job = partial(_job, node, key, cluster, place, workspace)
    if place.nodes > 1:
        together = job(name, _torchrun(name, node, cluster, place))
        return [_service(name, together), _over_nodes(together, name, place, cluster)]
    if place.parts > 1:
        first = job(f"{name}-parts", f"{node.command} --part ${INDEX}/{place.parts}")
        rest = job(name, node.command)
        return [_over_parts(first, place, cluster), _after(rest, f"{name}-parts")]
    return [job(name, _torchrun(name, node, cluster, place) if place.gpus > 1 else node.command)]


def resumed(job: Manifest, cluster: Cluster) -> Manifest:
    """Give a Job that waited for another as it is when its turn has come."""
    metadata = {**job["metadata"], "labels": job["metadata"]["labels"] | _queue(cluster)}
    return {**job, "metadata": metadata, "spec": job["spec"] | {"suspend": bool(cluster.queue)}}


def seen_by_pods(workspace: Path, cluster: Cluster) -> PurePath:
    """Give where a workspace lies in the pods: where it does here, if that is on the shared volume.

    Else the pods have one of their own: the root of the volume, or the folder of the image.
    """
    if isinstance(cluster.storage, BucketStorage):
        return IN_IMAGE
    mount = PurePath(cluster.storage.mount)
    return workspace if workspace.is_relative_to(mount) else mount


def to_yaml(manifests: list[Manifest], cluster: Cluster) -> str:
    """Give manifests as one YAML stream; a comment says which Job waits for another, and how it goes on."""
    return "".join(f"---\n{_comment(m, cluster)}{_dump(m)}" for m in manifests)


def job_name(stage: str, key: str) -> str:
    """Name the Job of a stage: a DNS name that equal work alone shares."""
    words = [_words(stage)[:MAX_STAGE].strip("-"), _words(key)[:10].strip("-")]
    return "-".join(["blip", *filter(None, words)])


def label(text: str) -> str:
    """Give a text as a label's value: what a label may not hold becomes a dash."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text)[:MAX_LABEL].strip("-_.")


def _check(node: Node, place: Place, cluster: Cluster, workspace: PurePath) -> None:
    verb, storage = node.name.split("@")[0], cluster.storage
    if node.command is None:
        raise ConfigError(f"{node.name} is data, not a stage: there is nothing to run")
    if (place.nodes > 1 or place.gpus > 1) and verb not in TOGETHER:
        raise ConfigError(
            f"{node.name}: {place.nodes} nodes with {place.gpus} GPUs: only {_listed(TOGETHER)} "
            "go over several; give it one node and at most one GPU"
        )
    if place.parts > 1 and verb not in PARTED:
        raise ConfigError(
            f"{node.name}: {place.parts} parts: only {_listed(PARTED)} go over parts; give it one"
        )
    if min(place.nodes, place.parts) < 1 or place.gpus < 0:
        raise ConfigError(f"{node.name}: nodes and parts begin at 1, GPUs at 0")
    if isinstance(storage, SharedStorage):
        if not workspace.is_relative_to(storage.mount):
            raise ConfigError(
                f"{workspace} is not on the shared volume, which is mounted at {storage.mount}: "
                "work there, or give the cluster storage of kind s3"
            )
    elif place.nodes > 1:
        raise ConfigError(
            f"{node.name}: several nodes share the folder runs/ of the workspace, "
            "which storage of kind s3 cannot: use a shared volume, or one node"
        )


def _torchrun(name: str, node: Node, cluster: Cluster, place: Place) -> str:
    """Give the command that starts a process a GPU, on this node as on the others."""
    where = (
        f"--nnodes {place.nodes} --rdzv-backend c10d --rdzv-id {name} "
        f"--rdzv-endpoint {name}-0.{name}:{PORT} --rdzv-conf is_host=$(({INDEX} == 0)) "
        f"--local-addr {name}-${INDEX}.{name}"
        if place.nodes > 1
        else "--standalone"
    )
    return (
        f"python -m blip.torchrun {where} --nproc-per-node {max(place.gpus, 1)} "
        f"--shutdown-timeout {cluster.grace_seconds - LAST_WORDS} "
        f"-m {node.command}"
    )


def _job(
    node: Node,
    key: str,
    cluster: Cluster,
    place: Place,
    workspace: PurePath,
    name: str,
    command: str,
) -> Manifest:
    """Give the Job of one pod that runs a command of a stage."""
    if isinstance(cluster.storage, BucketStorage):
        command = f"python -m {IN_POD} {shlex.quote(node.name)} {shlex.quote(command)}"
    labels = {
        "app.kubernetes.io/name": "blip",
        "app.kubernetes.io/component": "stage",
        STAGE: label(node.name),
        KEY: label(key),
    }
    spec: Manifest = {
        "backoffLimit": cluster.retries,
        "podFailurePolicy": {
            "rules": [
                _on_codes("FailJob", USER_ERROR),
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                _on_codes("Ignore", LOST_PEER, TERMINATED),
            ]
        },
        "podReplacementPolicy": "Failed",  # never two pods of one index in one workspace
        "ttlSecondsAfterFinished": cluster.ttl_seconds,
        "template": {
            "metadata": {"labels": labels, "annotations": {STAGE: node.name}},
            "spec": pod(cluster, place, workspace, command),
        },
    }
    if node.timeout is not None:
        spec["activeDeadlineSeconds"] = math.ceil(node.timeout)
    if cluster.queue:
        spec["suspend"] = True  # until Kueue admits it
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": cluster.namespace,
            "labels": labels | _queue(cluster),
            "annotations": {STAGE: node.name, COMMAND: node.command},
        },
        "spec": spec,
    }


def _on_codes(action: str, *codes: int) -> Manifest:
    return {
        "action": action,
        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": sorted(codes)},
    }


def _over_nodes(job: Manifest, service: str, place: Place, cluster: Cluster) -> Manifest:
    """Make a Job one of several pods that find each other through a Service."""
    job["spec"] |= {
        "completionMode": "Indexed",
        "completions": place.nodes,
        "parallelism": place.nodes,
        "backoffLimit": cluster.retries * place.nodes,  # what ends one may end all
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    }
    spec = job["spec"]["template"]["spec"]
    spec["subdomain"] = service
    spec["containers"][0]["env"] += [{"name": n, "value": v} for n, v in TORCHRUN.items()]
    return job


def _over_parts(job: Manifest, place: Place, cluster: Cluster) -> Manifest:
    """Make a Job one of several pods that know nothing of each other."""
    del job["spec"]["backoffLimit"]
    job["spec"] |= {
        "completionMode": "Indexed",
        "completions": place.parts,
        "parallelism": place.parts,
        "backoffLimitPerIndex": cluster.retries,
    }
    return job


def _after(job: Manifest, first: str) -> Manifest:
    """Have a Job wait until it is resumed (`resumed`); out of the queue, which would admit it."""
    job["metadata"]["annotations"][AFTER] = first
    job["metadata"]["labels"].pop(QUEUE, None)
    job["spec"]["suspend"] = True
    return job


def _queue(cluster: Cluster) -> dict[str, str]:
    return {QUEUE: cluster.queue} if cluster.queue else {}


def _service(name: str, job: Manifest) -> Manifest:
    """Give the headless Service by which the pods of a Job have names, also before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {key: job["metadata"][key] for key in ("name", "namespace", "labels")},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _listed(verbs: frozenset[str]) -> str:
    return ", ".join(sorted(verbs))


def _comment(manifest: Manifest, cluster: Cluster) -> str:
    if isinstance(cluster.storage, BucketStorage):
        stage = manifest["metadata"]["annotations"][STAGE]
        return (
            "# To read, not to apply: the workspace goes into the bucket as the stage is submitted:\n"
            f"#   blip k8s submit {stage}\n"
        )
    first = manifest["metadata"].get("annotations", {}).get(AFTER)
    if not first:
        return ""
    name, kubectl = manifest["metadata"]["name"], f"kubectl -n {cluster.namespace}"
    resume = (
        f"{kubectl} label job {name} {QUEUE}={cluster.queue}"
        if cluster.queue
        else f'{kubectl} patch job {name} -p \'{{"spec": {{"suspend": false}}}}\''
    )
    return (
        f"# Waits until it is resumed, when {first} is complete (it does itself what that has left):\n"
        f"#   {kubectl} wait --for condition=complete --timeout -1s job/{first} &&\n"
        f"#   {resume}\n"
    )


def _dump(manifest: Manifest) -> str:
    return yaml.dump(manifest, Dumper=_Plain, sort_keys=False, width=math.inf)


class _Plain(yaml.SafeDumper):
    """Writes everything out, without anchors; what any reader could take for a number is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        numeric = data[:1] in set("+-.0123456789") and data != ""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="'" if numeric else None)


_Plain.add_representer(str, _Plain.represent_str)
