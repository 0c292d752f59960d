"""What the pod of a stage is: a container as Pod Security "restricted" wants it, and what it may write to."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from blip.integrations.cluster.settings import BucketStorage, Cluster, Place, SharedStorage
from blip.integrations.launch import TELEMETRY_OFF, shell_arguments

Manifest = dict[str, Any]

CONTAINER = "stage"
USER = 1000


def pod(cluster: Cluster, place: Place, workspace: PurePath, command: str) -> Manifest:
    """Give a pod as Pod Security "restricted" wants it; it writes to its workspace, /tmp and /dev/shm."""
    spec: Manifest = {
        "restartPolicy": "Never",
        "serviceAccountName": cluster.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # The stage is not process 1, for which SIGTERM does nothing unless it is handled.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": cluster.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(cluster, place, workspace, command)],
        "volumes": [
            _workspace_volume(cluster),
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": place.shm}},
        ],
    }
    if cluster.node_selector:
        spec["nodeSelector"] = dict(cluster.node_selector)
    if cluster.tolerations:
        spec["tolerations"] = [t.model_dump(exclude_none=True) for t in cluster.tolerations]
    if cluster.priority_class:
        spec["priorityClassName"] = cluster.priority_class
    if cluster.runtime_class:
        spec["runtimeClassName"] = cluster.runtime_class
    return spec


def _container(cluster: Cluster, place: Place, workspace: PurePath, command: str) -> Manifest:
    storage = cluster.storage
    secrets = [*cluster.env_from, *([storage.secret] if isinstance(storage, BucketStorage) else [])]
    # No limit of CPU: it would hold a stage up beside idle cores.
    limits: Manifest = {"memory": place.memory}
    if place.gpus:
        limits["nvidia.com/gpu"] = str(place.gpus)
    container: Manifest = {
        "name": CONTAINER,
        "image": cluster.image,
        "imagePullPolicy": cluster.image_pull_policy,
        # Its dollars are the shell's: Kubernetes would take `$(NAME)` and `$$` for its own.
        "command": [word.replace("$", "$$") for word in shell_arguments(command)],
        "workingDir": str(workspace),
        "env": [{"name": n, "value": v} for n, v in _environment(cluster, workspace).items()],
        "resources": {"requests": {"cpu": place.cpu, "memory": place.memory}, "limits": limits},
        "terminationMessagePolicy": "FallbackToLogsOnError",  # the last lines say why
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "workspace", "mountPath": _mount(storage, workspace)},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - of the pod alone
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }
    if secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in secrets]
    return container


def _environment(cluster: Cluster, workspace: PurePath) -> Mapping[str, str]:
    """Give what stages have in their environment everywhere, and what this cluster adds."""
    environment = {
        **TELEMETRY_OFF,
        "HOME": "/tmp",  # noqa: S108 - of the pod alone
        "PYTHONPATH": str(workspace),  # the code that runs is the code that DVC recorded
        "PYTHONUNBUFFERED": "1",
        "USER": "blip",  # whether the image has a name for it or not
    }
    if isinstance(cluster.storage, SharedStorage):
        environment["BLIP_TRACKING"] = "journal"  # the run's own follower carries them to MLflow
    return environment | cluster.env


def _workspace_volume(cluster: Cluster) -> Manifest:
    if isinstance(cluster.storage, SharedStorage):
        return {"name": "workspace", "persistentVolumeClaim": {"claimName": cluster.storage.claim}}
    return {"name": "workspace", "emptyDir": {}}


def _mount(storage: SharedStorage | BucketStorage, workspace: PurePath) -> str:
    return storage.mount if isinstance(storage, SharedStorage) else str(workspace)
