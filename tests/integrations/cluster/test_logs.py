"""Whose lines they are; tests/kube reads real ones, over connections that drop."""

from typing import Any

import pytest

from blip.integrations.cluster.logs import label, parallel


def test_a_pod_is_named_by_its_index_or_the_end_of_its_name() -> None:
    pod: dict[str, Any] = {"metadata": {"name": "blip-x-abcde"}}
    assert label(pod) == "abcde"
    pod["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": "3"}
    assert label(pod) == "3"


@pytest.mark.parametrize(
    ("spec", "several"), [({}, False), ({"completions": 1, "parallelism": 1}, False), ({"completions": 2}, True)]
)  # fmt: skip
def test_only_where_there_are_several_pods_they_are_named(
    spec: dict[str, int], several: bool
) -> None:
    assert parallel({"spec": spec}) is several
