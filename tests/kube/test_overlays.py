"""What `kubectl apply -k` is given: whole, restricted, with one name for one thing, and no password in it."""

import asyncio
import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from blip.integrations.cluster.settings import SharedStorage, load_cluster
from flows.install import job_template

ROOT = Path(__file__).parents[2]
OVERLAYS = ("local", "gpu")
KUBERNETES = "1.37"  # of the schemas
POD_KINDS = {"Deployment", "StatefulSet", "Job", "CronJob"}


def has_kustomize() -> bool:
    kubectl = shutil.which("kubectl")
    known = kubectl and subprocess.run(
        [kubectl, "version", "--client"], capture_output=True, text=True, check=False
    )
    found = re.search(r"Kustomize Version: v(\d+)", known.stdout) if known else None
    return bool(found and int(found[1]) >= 4)


needs_kustomize = pytest.mark.skipif(not has_kustomize(), reason="needs kubectl with kustomize 4")


def build(folder: Path) -> list[dict[str, Any]]:
    """Give what `kubectl apply -k` would send."""
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert rendered.returncode == 0, rendered.stderr
    return [document for document in yaml.safe_load_all(rendered.stdout) if document]


@pytest.fixture(scope="session")
def k8s(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of k8s/ with fresh secrets."""
    copy = tmp_path_factory.mktemp("overlays") / "k8s"
    shutil.copytree(ROOT / "k8s", copy, ignore=shutil.ignore_patterns("secrets"))
    for overlay in OVERLAYS:
        subprocess.run([copy / "secrets.sh", copy / "overlays" / overlay], check=True)
    return copy


@pytest.fixture(scope="session")
def rendered(k8s: Path) -> dict[str, list[dict[str, Any]]]:
    return {overlay: build(k8s / "overlays" / overlay) for overlay in OVERLAYS}


def pod_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    if document["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return dict(spec["template"]["spec"])


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents:
        if document["kind"] in POD_KINDS:
            yield document["metadata"]["name"], pod_spec(document)


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def flow_job(overlay: str, monkeypatch: pytest.MonkeyPatch, **values: Any) -> dict[str, Any]:
    """Give the Job that a worker makes of our template for a flow run."""
    monkeypatch.chdir(ROOT)
    template = job_template(load_cluster(ROOT / f"k8s/overlays/{overlay}/jobs.yaml"))
    configuration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(
            template,
            values,
            client=PrefectClient("http://127.0.0.1:9/api"),  # it is not asked
        )
    )
    flow = Flow(id=uuid.uuid4(), name="experiment", labels={})
    configuration.prepare_for_flow_run(FlowRun(name="params.yaml", flow_id=flow.id), flow=flow)
    return dict(configuration.job_manifest)


def assert_restricted(name: str, spec: dict[str, Any]) -> None:
    """Hold a pod against every rule of Pod Security `restricted`, and against our own."""
    pod = spec["securityContext"]
    assert pod["runAsNonRoot"] is True, name
    assert pod["runAsUser"] > 0, name
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        assert not spec.get(field), name
    allowed = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected"}
    for volume in spec.get("volumes", []):
        assert set(volume) - {"name"} <= allowed, name
    for container in containers(spec):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert not context.get("privileged"), name
        assert context.get("runAsUser", 1) > 0, name
        assert "procMount" not in context, name
        assert not any(port.get("hostPort") for port in container.get("ports", [])), name
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
        assert "memory" in container["resources"]["limits"], name


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_passes_the_published_schemas(
    rendered: Any, overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [*rendered[overlay], flow_job(overlay, monkeypatch)]
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert {d["kind"] for d in documents} >= {"StatefulSet", "CronJob", "NetworkPolicy", "Role"}


def test_every_variable_of_flow_runs_is_told_of() -> None:
    text = (ROOT / "docs/kubernetes.md").read_text()
    section = text.partition("\n### Variables of flow runs\n")[2].partition("\n### ")[0]
    told = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    variables = json.loads((ROOT / "k8s/job-template.json").read_text())["variables"]["properties"]
    assert told == [
        (name, shown(variable["default"]), variable["description"])
        for name, variable in variables.items()
    ]


def shown(default: Any) -> str:
    """Give a default as the table shows it."""
    if default is None:
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted(rendered: Any, overlay: str) -> None:
    found = dict(pods(rendered[overlay]))
    assert set(found) == {"postgres", "s3", "mlflow", "prefect", "worker", "buckets", "backup"}
    for name, spec in found.items():
        assert_restricted(name, spec)
    namespace = next(d for d in rendered[overlay] if d["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_flow_runs_are_restricted(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = flow_job(overlay, monkeypatch)
    spec = job["spec"]["template"]["spec"]
    assert_restricted("flow run", spec)
    cluster = load_cluster(ROOT / f"k8s/overlays/{overlay}/jobs.yaml")
    container = spec["containers"][0]
    assert container["image"] == cluster.image
    assert container["args"], "Prefect's own command"
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert not re.search(r"\{\{", json.dumps(job)), "a variable of the template has no value"


def test_variables_of_the_template_reach_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    job = flow_job(
        "gpu",
        monkeypatch,
        gpus=2,
        shm_size="8Gi",
        node_selector={"gpu": "a100"},
        tolerations=[toleration],
        priority_class="urgent",
        runtime_class="nvidia",
        grace_seconds=300,
        env={"EXTRA": "1"},
        memory_limit="64Gi",
    )
    spec = job["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert container["resources"]["limits"]["memory"] == "64Gi"
    shm = next(volume for volume in spec["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert (spec["nodeSelector"], spec["tolerations"]) == ({"gpu": "a100"}, [toleration])
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("urgent", "nvidia")
    assert spec["terminationGracePeriodSeconds"] == 300
    names = {entry["name"] for entry in container["env"]}
    assert {"EXTRA", "BLIP_CLUSTER"} <= names  # merged, not replaced


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_name_for_one_thing(rendered: Any, overlay: str) -> None:
    """Jobs of stages, the job template and the manifests name the same image, secrets and volume."""
    documents = rendered[overlay]
    cluster = load_cluster(ROOT / f"k8s/overlays/{overlay}/jobs.yaml")
    named = {(d["kind"], d["metadata"]["name"]) for d in documents}
    images = {c["image"] for _, spec in pods(documents) for c in containers(spec)}
    assert cluster.image in images
    assert not images & {"blip", "postgres", "rclone"}, "an image without a version"
    assert {("Secret", name) for name in cluster.env_from} <= named
    assert ("ServiceAccount", cluster.service_account) in named
    assert cluster.priority_class is None or ("PriorityClass", cluster.priority_class) in named
    assert isinstance(cluster.storage, SharedStorage)
    assert ("PersistentVolumeClaim", cluster.storage.claim) in named
    template = json.loads((ROOT / "k8s/job-template.json").read_text())["variables"]["properties"]
    assert ("ServiceAccount", template["service_account_name"]["default"]) in named
    assert ("PriorityClass", template["priority_class"]["default"]) in named
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    places = {
        step["prefect.deployments.steps.set_working_directory"]["directory"]
        for deployment in deployments
        for step in deployment.get("pull", [])
    }
    assert places == {cluster.storage.mount}
    for _, spec in pods(documents):
        for container in containers(spec):
            for source in container.get("envFrom", []):
                assert ("Secret", source["secretRef"]["name"]) in named
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in named
        assert ("ServiceAccount", spec["serviceAccountName"]) in named


@needs_kustomize
def test_only_who_places_jobs_has_a_token(rendered: Any) -> None:
    documents = rendered["gpu"]
    accounts = {
        d["metadata"]["name"]: d.get("automountServiceAccountToken", True)
        for d in documents
        if d["kind"] == "ServiceAccount"
    }
    assert {name for name, token in accounts.items() if token} == {"blip-worker", "blip-flow"}
    rules = [rule for d in documents if d["kind"] == "Role" for rule in d["rules"]]
    assert not [r for r in rules if {"secrets", "*"} & set(r["resources"]) or "*" in r["verbs"]]
    assert not [d for d in documents if d["kind"] in ("ClusterRole", "ClusterRoleBinding")]


@needs_kustomize
def test_every_server_is_probed_and_watched_over(rendered: Any) -> None:
    documents = rendered["local"]
    for document in documents:
        if document["kind"] in ("Deployment", "StatefulSet"):
            container = pod_spec(document)["containers"][0]
            assert {"startupProbe", "livenessProbe"} <= container.keys()
    budgets = [d["spec"]["selector"] for d in documents if d["kind"] == "PodDisruptionBudget"]
    guarded = {s["matchLabels"]["app.kubernetes.io/component"] for s in budgets}
    assert guarded == {"postgres", "s3", "mlflow", "prefect"}


@needs_kustomize
def test_the_network_is_closed_but_for_what_is_named(rendered: Any) -> None:
    policies = {
        d["metadata"]["name"]: d["spec"] for d in rendered["local"] if d["kind"] == "NetworkPolicy"
    }
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    known = {
        d["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
        for d in rendered["local"]
        if d["kind"] in ("Deployment", "StatefulSet", "Job")
    } | {"backup", "flow", "stage"}
    for spec in policies.values():
        for match in re.findall(r"values': \[(.*?)\]", str(spec)):
            assert set(re.findall(r"\w+", match)) <= known
    assert not [
        s for n, s in policies.items() if any("from" not in i for i in s.get("ingress", []))
    ]


@needs_kustomize
def test_stores_outside_of_the_cluster(k8s: Path) -> None:
    overlay = k8s / "overlays" / "outside"
    shutil.copytree(k8s / "overlays" / "local", overlay)
    file = overlay / "kustomization.yaml"
    text = file.read_text()
    inside = "components: [../../components/postgres, ../../components/s3]"
    assert inside in text
    file.write_text(text.replace(inside, "components: [../../components/external]"))
    documents = build(overlay)
    assert {"postgres", "s3"}.isdisjoint(dict(pods(documents)))
    assert "uses-outside" in {d["metadata"]["name"] for d in documents}


def test_secrets_are_random_made_once_and_never_committed(tmp_path: Path) -> None:
    passwords = []
    for overlay in ("one", "two"):
        (tmp_path / overlay).mkdir()
        for _ in range(2):
            subprocess.run([ROOT / "k8s/secrets.sh", tmp_path / overlay], check=True)
            files = sorted((tmp_path / overlay / "secrets").glob("*.env"))
            passwords.append({file.name: file.read_text() for file in files})
            assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert passwords[0] == passwords[1]
    assert not set(passwords[0].values()) & set(passwords[2].values()), "equal passwords"
    ignored = subprocess.run(
        ["git", "check-ignore", "k8s/overlays/gpu/secrets/s3.env"], cwd=ROOT, check=False
    )
    assert ignored.returncode == 0
    assert "/k8s/overlays/*/secrets" in (ROOT / ".dockerignore").read_text()
