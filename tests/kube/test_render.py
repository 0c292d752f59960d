"""What is rendered, in the eyes of a real API server: every field it knows is taken as it was meant."""

import json
from pathlib import Path, PurePath
from typing import Any

import pytest

from blip.integrations.cluster.manifests import render, to_yaml
from blip.integrations.cluster.settings import Cluster, load_cluster
from blip.integrations.versioning import Node

pytestmark = pytest.mark.kube

OVERLAYS = Path(__file__).parents[2] / "k8s" / "overlays"
SINCE_1_21 = {  # an older server drops them; test_manifests.py holds them against the schemas
    "backoffLimitPerIndex",
    "completionMode",
    "podFailurePolicy",
    "podReplacementPolicy",
    "successPolicy",
    "suspend",
}


@pytest.mark.parametrize("overlay", ["local", "gpu"])
@pytest.mark.parametrize(
    ("verb", "how"),
    [
        ("select", {}),
        ("pretrain", {"nodes": 1, "gpus": 8}),
        ("pretrain", {"nodes": 4, "gpus": 1}),
        ("caption", {"parts": 12}),
    ],
)
def test_the_server_takes_every_shape(
    kubectl: Any, overlay: str, verb: str, how: dict[str, int]
) -> None:
    document = load_cluster(OVERLAYS / overlay / "jobs.yaml").model_dump()
    cluster = Cluster.model_validate({**document, "namespace": kubectl.namespace})
    node = Node(f"{verb}@web", f"blip {verb} --out out", timeout=60.0)
    documents = render(node, "ab" * 32, cluster, PurePath("/workspace"), **how)
    taken = json.loads(
        kubectl(
            *("apply", "--dry-run=server", "--validate=false", "--output=json", "--filename=-"),
            text=to_yaml(documents, cluster),
        )
    )
    found = taken["items"] if taken["kind"] == "List" else [taken]
    assert len(found) == len(documents)
    for sent, got in zip(documents, found, strict=True):
        assert set(lost(sent, got)) <= SINCE_1_21


def lost(sent: Any, got: Any, name: str = "") -> list[str]:
    """Name what was sent and did not come back; defaults that were added do not matter."""
    if isinstance(sent, dict) and isinstance(got, dict):
        return [each for key in sent for each in lost(sent[key], got.get(key), key)]
    if isinstance(sent, list) and isinstance(got, list) and len(sent) == len(got):
        return [each for a, b in zip(sent, got, strict=True) for each in lost(a, b, name)]
    return [] if sent == got else [name]
