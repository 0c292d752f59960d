"""The clusters of the overlays, and a stage of each shape."""

import re
from pathlib import Path

import pytest

from blip.integrations.cluster.settings import Cluster, load_cluster
from blip.integrations.versioning import Node

OVERLAYS = Path(__file__).parents[3] / "k8s" / "overlays"
KEY = "0123456789abcdef" * 4


@pytest.fixture(params=["local", "gpu"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    return load_cluster(OVERLAYS / request.param / "jobs.yaml")


@pytest.fixture
def local() -> Cluster:
    return load_cluster(OVERLAYS / "local" / "jobs.yaml")


def stage(name: str, timeout: float | None = None) -> Node:
    """A stage whose command is a verb over directories, as those of dvc.yaml."""
    verb = name.split("@")[0].replace("_", " ")
    return Node(name, f"blip {verb} --data datasets/web --out out", timeout=timeout)


def expanded(text: str) -> str:
    """Give an argument as the kubelet hands it on: `$$` is a dollar, `$(NAME)` a variable (here `<NAME>`)."""
    return re.sub(r"\$(?:(\$)|\((.*?)\))", lambda m: m[1] or f"<{m[2]}>", text, flags=re.DOTALL)
