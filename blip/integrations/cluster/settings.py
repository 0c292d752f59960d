"""What `jobs.yaml` says: what the Jobs of a cluster look like. docs/kubernetes.md explains each key."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from blip.config import Count, Positive, Section, read_yaml
from blip.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

CLUSTER = "BLIP_CLUSTER"
LOCAL = Path("k8s/overlays/local/jobs.yaml")
KEYS = "docs/kubernetes.md explains every key"

DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Folder = Annotated[str, Field(pattern=r"^/[^:]+[^:/]$")]


class Toleration(Section):
    """A taint of nodes that the Jobs put up with."""

    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]

    @model_validator(mode="after")
    def _value(self) -> "Toleration":
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("`Equal` needs a value, `Exists` takes none")
        return self


class SharedStorage(Section):
    """A volume that many pods write: the workspaces lie on it, as here so in the pods."""

    kind: Literal["shared"]
    claim: DnsName
    mount: Folder


class BucketStorage(Section):
    """An S3 store alone: a pod pulls what its stage reads, and pushes what it made."""

    kind: Literal["s3"]
    secret: DnsName


class Place(Section):
    """What a pod of a stage asks for, and over how many pods the stage goes."""

    cpu: Quantity
    memory: Quantity
    gpus: Count
    shm: Quantity
    nodes: Positive
    parts: Positive


class Cluster(Section):
    """The Jobs of a cluster."""

    namespace: DnsName
    image: Annotated[str, Field(min_length=1)]
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"]
    service_account: DnsName
    queue: DnsName | None
    priority_class: DnsName | None
    node_selector: dict[str, str]
    tolerations: tuple[Toleration, ...]
    runtime_class: DnsName | None
    storage: Annotated[SharedStorage | BucketStorage, Field(discriminator="kind")]
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str]
    env_from: tuple[DnsName, ...]
    grace_seconds: Annotated[int, Field(ge=30)]
    ttl_seconds: Count
    retries: Count
    patience_seconds: Positive
    stages: dict[str, Place]

    @model_validator(mode="after")
    def _default(self) -> "Cluster":
        if "default" not in self.stages:
            raise ValueError("stages: `default` is missing: the stages without an entry take it")
        return self

    def place(self, stage: str) -> Place:
        """Give what a stage asks for: the entry of its verb (`pretrain@human`: `pretrain`), or the default."""
        return self.stages.get(stage.split("@")[0], self.stages["default"])


def load_cluster(path: Path | None = None) -> Cluster:
    """Read what the Jobs of a cluster look like.

    Args:
        path: The file; by default what BLIP_CLUSTER names, else that of the local overlay.

    Raises:
        ConfigError: The file cannot be read, a key is unknown or missing, a value breaks its rule.
    """
    path = path or Path(os.environ.get(CLUSTER) or LOCAL)
    try:
        return Cluster.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_problem(e)}" for e in error.errors())) from None


def _problem(error: "ErrorDetails") -> str:
    """Say what is wrong with a key, and the remedy."""
    key = ".".join(str(part) for part in error["loc"]) or "(whole file)"
    match error["type"]:
        case "extra_forbidden":
            return f"{key}: there is no such key: take it out, or mend its spelling ({KEYS})"
        case "missing":
            return f"{key}: is missing: give it a value; nothing has a default ({KEYS})"
    return f"{key}: {error['msg']} (got {error['input']!r:.80}): see {KEYS}"
