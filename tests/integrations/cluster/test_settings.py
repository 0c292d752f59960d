"""`jobs.yaml`: complete, frozen, and particular; the table of its keys agrees with it."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from blip.errors import ConfigError
from blip.integrations.cluster.settings import (
    BucketStorage,
    Cluster,
    Place,
    SharedStorage,
    Toleration,
    load_cluster,
)
from tests.integrations.cluster.conftest import OVERLAYS

LOCAL = OVERLAYS / "local" / "jobs.yaml"
TABLE = OVERLAYS.parents[1] / "docs" / "kubernetes.md"


def write(folder: Path, **changes: Any) -> Path:
    """Write the local overlay's file with other values of keys (`__` for the dot); `...` takes one out."""
    document = yaml.safe_load(LOCAL.read_text())
    for dotted, value in changes.items():
        *parents, leaf = dotted.split("__")
        node = document
        for parent in parents:
            node = node[parent]
        if value is ...:
            del node[leaf]
        else:
            node[leaf] = value
    path = folder / "jobs.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_stage_takes_the_place_of_its_verb_or_the_default(cluster: Cluster) -> None:
    assert cluster.place("pretrain@human") == cluster.stages["pretrain"]
    assert cluster.place("select") == cluster.stages["default"]


def test_the_file_is_the_named_one_or_that_of_the_environment_or_the_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(OVERLAYS.parents[1])
    monkeypatch.delenv("BLIP_CLUSTER", raising=False)
    assert load_cluster().namespace == "blip"
    monkeypatch.setenv("BLIP_CLUSTER", str(write(tmp_path, namespace="theirs")))
    assert load_cluster().namespace == "theirs"
    assert load_cluster(LOCAL).namespace == "blip"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name_space": "x"}, "name_space: there is no such key: take it out"),
        ({"stages__default__gpu": 1}, "stages.default.gpu: there is no such key: take it out"),
        ({"storage__secret": "x"}, "storage.shared.secret: there is no such key"),
        ({"queue": ...}, "queue: is missing: give it a value; nothing has a default"),
        ({"stages__pretrain__shm": ...}, "stages.pretrain.shm: is missing"),
        ({"stages__default": ...}, "stages: `default` is missing"),
        ({"image": ""}, "image: String should have at least 1 character (got '')"),
        ({"namespace": "Blip"}, "namespace: "),
        ({"grace_seconds": 5}, "grace_seconds: Input should be greater than or equal to 30"),
        ({"stages__default__memory": "2 GB"}, "stages.default.memory: "),
        ({"stages__default__nodes": 0}, "stages.default.nodes: "),
        ({"env": {"A": 1}}, "env.A: Input should be a valid string (got 1)"),
        ({"env": {"A-B": "1"}}, "env.A-B"),
        ({"storage": {"kind": "nfs"}}, "storage: "),
        ({"storage": {"kind": "s3", "claim": "x"}}, "storage.s3.claim: there is no such key"),
        (
            {"tolerations": [{"key": "a", "operator": "Exists", "value": "b", "effect": "NoExecute"}]},
            "`Exists` takes none",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_file_key_and_remedy(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "docs/kubernetes.md explains every key" in message


def test_the_table_of_keys_and_the_model_agree() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \|", TABLE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(keys(Cluster))


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Name the keys of a model; a union's are those of its members."""
    inner = {
        "storage": [SharedStorage, BucketStorage],
        "tolerations": [Toleration],
        "stages": [Place],
    }
    found = []
    for name in model.model_fields:
        members = inner.get(name, []) if not prefix else []
        found += [prefix + name] if not members else []
        found += sorted({k for member in members for k in keys(member, f"{name}.")})
    return found


def test_the_literals_of_the_table_are_those_of_the_model() -> None:
    for field in (Cluster.model_fields["image_pull_policy"], Toleration.model_fields["effect"]):
        for value in get_args(field.annotation):
            assert f"`{value}`" in TABLE.read_text()
