"""The overlay `local` on a real cluster: its pods run, a flow run becomes a Job, and nobody may do too much.

What the test cluster lacks is replaced here and nowhere else. It can pull no image: PostgreSQL and rclone run from
the programs of this machine, in our own image. It has no storage classes: its volumes are folders
of the node. Its pods have no DNS and its services no addresses: what names a server gets the address of its pod, so
that servers start before what asks them. Kubernetes 1.20 knows CronJob and PodDisruptionBudget by their older
versions.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube import images
from tests.kube.test_overlays import needs_kustomize

pytestmark = [pytest.mark.kube, needs_kustomize]

ROOT = Path(__file__).parents[2]
OLDER = {"CronJob": "batch/v1beta1", "PodDisruptionBudget": "policy/v1beta1"}
PORTS = {"postgres": 5432, "s3": 8080, "mlflow": 5000, "prefect": 4200}
READY = 600.0

# What the official image does at its first start.
POSTGRES = """
if [ ! -e "$PGDATA" ]; then
  printf %s "$POSTGRES_PASSWORD" >/tmp/password
  initdb --username "$POSTGRES_USER" --pwfile /tmp/password --auth-host scram-sha-256 --auth-local trust >/tmp/log
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl --wait --options "-c listen_addresses= -c unix_socket_directories=/tmp" start >/tmp/log
  PGHOST=/tmp sh /docker-entrypoint-initdb.d/databases.sh
  pg_ctl --wait stop >/tmp/log
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp
"""


class Platform:
    """The overlay `local` in a namespace of its own."""

    def __init__(self, kubeconfig: Path, folder: Path, image: str) -> None:
        self.kubeconfig, self.folder, self.image = kubeconfig, folder, image
        self.namespace = f"blip-test-{uuid.uuid4().hex[:8]}"
        self.addresses: dict[str, str] = {}
        self.overlay = folder / "k8s/overlays/local"
        shutil.copytree(ROOT / "k8s", folder / "k8s", ignore=shutil.ignore_patterns("secrets"))
        subprocess.run([folder / "k8s/secrets.sh", self.overlay], check=True)
        jobs = self.overlay / "jobs.yaml"
        settings = yaml.safe_load(jobs.read_text())
        settings.update(namespace=self.namespace, image=image)
        settings["stages"] = {"default": {**settings["stages"]["default"], "cpu": "100m"}}
        jobs.write_text(yaml.safe_dump(settings))

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}"]
        result = subprocess.run(
            [*command, *arguments], input=text, capture_output=True, text=True, check=False
        )
        assert not check or result.returncode == 0, result.stderr + result.stdout
        return result.stdout if result.returncode == 0 else result.stderr

    def apply(self, *wanted: str) -> None:
        """Apply the workloads of these names, or with none all that is no workload."""
        built = subprocess.run(
            ["kubectl", "kustomize", str(self.overlay)], capture_output=True, text=True, check=True
        )
        documents = [self._here(d) for d in yaml.safe_load_all(self._resolve(built.stdout))]
        workloads = {"Deployment", "StatefulSet", "Job"}
        chosen = [
            d
            for d in documents
            if (d["metadata"]["name"] in wanted if d["kind"] in workloads else not wanted)
        ]
        self.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(chosen))

    def wait(self, *names: str) -> None:
        """Wait until the pods of these components are ready; keep their addresses."""
        for name in names:
            pod = wait_until(partial(self.pod, name), READY, partial(self.story, name))
            self.addresses[name] = pod["status"]["podIP"]

    def pod(self, component: str) -> dict[str, Any] | None:
        """Give the pod of a component, once it is ready."""
        for pod in self.get("pods", "-l", f"app.kubernetes.io/component={component}"):
            conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
            if conditions.get("Ready") == "True":
                return pod
        return None

    def get(self, *what: str) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = json.loads(self.kubectl("get", *what, "-o", "json"))["items"]
        return answer

    def story(self, component: str) -> str:
        """Say what became of a component's pods, for the message of a failed test."""
        label = f"app.kubernetes.io/component={component}"
        return "\n".join(
            self.kubectl(*words, check=False)[-3000:]
            for words in (
                ("get", "pods", "-o", "wide"),
                ("describe", "pods", "-l", label),
                ("logs", "-l", label, "--all-containers", "--tail=30"),
            )
        )

    def prefect(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the Prefect server, with the password of its Secret."""
        password = secret(self.overlay, "prefect", "PREFECT_API_AUTH_STRING")
        request = urllib.request.Request(
            f"http://{self.addresses['prefect']}:4200/api/{path}",
            None if body is None else json.dumps(body).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Basic {b64encode(password.encode()).decode()}",
            },
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def _resolve(self, text: str) -> str:
        """Put addresses where the documents name a service, also in Secrets; and the image of this test."""
        text = text.replace("image: blip:cpu", f"image: {self.image}")
        for name, port in PORTS.items():
            if address := self.addresses.get(name):
                text = re.sub(rf"(//|@){name}:{port}", rf"\g<1>{address}:{port}", text)
        return text

    def _here(self, document: dict[str, Any]) -> dict[str, Any]:
        """Change a document to what this cluster can do."""
        document["apiVersion"] = OLDER.get(document["kind"], document["apiVersion"])
        metadata = document["metadata"]
        if document["kind"] == "Namespace":
            metadata["name"] = self.namespace
        elif "namespace" in metadata:
            metadata["namespace"] = self.namespace
        if document["kind"] == "RoleBinding":
            for subject in document["subjects"]:
                subject["namespace"] = self.namespace
        if document["kind"] == "Secret":
            for key, value in document["data"].items():
                document["data"][key] = encoded(self._resolve(decoded(value)))
        if metadata["name"] in ("postgres", "s3") and "template" in document.get("spec", {}):
            self._bring_program(metadata["name"], document["spec"])
        return document

    def _bring_program(self, name: str, spec: dict[str, Any]) -> None:
        pod = spec["template"]["spec"]
        container = pod["containers"][0]
        container["image"] = self.image
        if name == "postgres":
            program = Path("/usr")
            container["command"], container["args"] = ["sh", "-euc", POSTGRES], []
            pod["securityContext"].update(runAsUser=1000, runAsGroup=1000, fsGroup=1000)
            container["env"] += [
                {
                    "name": "PATH",
                    "value": f"/host/postgres/{debians()}:/opt/venv/bin:/usr/bin:/bin",
                },
                {"name": "LD_LIBRARY_PATH", "value": "/host/postgres/lib/x86_64-linux-gnu"},
            ]
        else:
            program = Path(sys.prefix) / "bin/rclone"
            container["command"] = ["/host/s3"]
        pod["volumes"].append({"name": "program", "hostPath": {"path": str(program)}})
        mount = {"name": "program", "mountPath": f"/host/{name}", "readOnly": True}
        container["volumeMounts"].append(mount)

    def make_volumes(self) -> list[str]:
        """Make a folder of the node for each claim; give the names of their volumes."""
        names = []
        for claim in ("blip-workspace", "s3", "data-postgres-0"):
            folder = self.folder / "volumes" / claim
            folder.mkdir(parents=True)
            folder.chmod(0o777)
            names.append(f"{self.namespace}-{claim}")
            volume = {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": names[-1]},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "capacity": {"storage": "50Gi"},
                    "hostPath": {"path": str(folder)},
                    "claimRef": {"namespace": self.namespace, "name": claim},
                },
            }
            self.kubectl("apply", "-f", "-", text=yaml.safe_dump(volume))
        return names


def debians() -> str:
    """Give the folder below /usr with Debian's PostgreSQL: Prefect needs an extension that the wheels lack."""
    found = sorted(Path("/usr").glob("lib/postgresql/*/bin/initdb"))
    if not found:
        pytest.skip("needs Debian's PostgreSQL")
    return str(found[-1].parent.relative_to("/usr"))


def encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


def decoded(text: str) -> str:
    return b64decode(text).decode()


def secret(overlay: Path, name: str, key: str) -> str:
    for line in (overlay / f"secrets/{name}.env").read_text().splitlines():
        if line.startswith(f"{key}="):
            return line.partition("=")[2]
    raise KeyError(key)


def wait_until(
    condition: Callable[[], Any], seconds: float, story: Callable[[], str] = lambda: ""
) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, story()
        time.sleep(0.5)
    return value


@pytest.fixture(scope="module")
def platform(kubeconfig: Path, image: str) -> Iterator[Platform]:
    """The platform, from nothing to a worker that waits for flow runs."""
    folder = Path(tempfile.mkdtemp(prefix="blip-platform-", dir="/var/tmp"))
    folder.chmod(0o755)
    node = images.Node(kubeconfig)
    if not node.has(image):
        node.give(image, folder)
    platform = Platform(kubeconfig, folder, image)
    volumes = platform.make_volumes()
    try:
        began = time.monotonic()
        platform.apply()
        platform.apply("postgres", "s3")
        platform.wait("postgres", "s3")
        platform.apply()  # the Secrets, with their addresses
        platform.apply("mlflow", "prefect", "buckets")
        platform.wait("prefect", "mlflow")
        platform.apply("worker")
        platform.wait("worker")
        sys.stdout.write(f"ready {time.monotonic() - began:.0f} s after kubectl apply\n")
        sys.stdout.write(platform.kubectl("get", "all"))
        yield platform
    finally:
        platform.kubectl("delete", "namespace", platform.namespace, "--wait=false", check=False)
        platform.kubectl("delete", "persistentvolume", *volumes, "--wait=false", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_databases_and_buckets_are_there(platform: Platform) -> None:
    names = {name for name in ("catalog", "mlflow", "prefect")}
    query = "SELECT datname FROM pg_database"
    listed = platform.kubectl(
        "exec",
        "postgres-0",
        "--",
        "sh",
        "-c",
        f"psql -h /tmp -U postgres -Atc '{query}'",
    )
    assert names <= set(listed.split())
    wait_until(lambda: any(job["status"].get("succeeded") for job in platform.get("jobs")), READY)
    folders = {folder.name for folder in (platform.folder / "volumes/s3").iterdir()}
    assert {"mlflow", "dvc", "backups"} <= folders


def test_mlflow_keeps_artifacts_in_the_bucket(platform: Platform) -> None:
    script = (
        "import mlflow, pathlib; mlflow.set_experiment('smoke'); "
        "run = mlflow.start_run(); mlflow.log_metric('loss', 1.0); "
        "pathlib.Path('/tmp/note').write_text('kept'); mlflow.log_artifact('/tmp/note'); "
        "print(mlflow.artifacts.load_text(mlflow.get_artifact_uri('note')))"
    )
    url = f"http://{platform.addresses['mlflow']}:5000"
    pod = platform.kubectl("get", "pods", "-l", "app.kubernetes.io/component=mlflow", "-o", "name")
    answer = platform.kubectl(
        "exec", pod.strip(), "--", "env", f"MLFLOW_TRACKING_URI={url}", "python", "-c", script
    )
    assert "kept" in answer
    assert list((platform.folder / "volumes/s3/mlflow/artifacts").rglob("note"))


def test_the_server_asks_for_its_password(platform: Platform) -> None:
    url = f"http://{platform.addresses['prefect']}:4200/api/flows/count"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, b"{}", method="POST"), timeout=30)
    assert refused.value.code == 401


def test_a_flow_run_is_a_job_of_our_template_and_its_stages_are_jobs(platform: Platform) -> None:
    pools = {pool["name"]: pool for pool in platform.prefect("POST", "work_pools/filter", {})}
    assert set(pools) == {"blip", "blip-kubernetes"}
    found = platform.prefect("GET", "deployments/name/prepare/kubernetes")
    run = platform.prefect(
        "POST",
        f"deployments/{found['id']}/create_flow_run",
        {
            "parameters": {
                "overrides": {"world.web": 40, "world.human": 10, "world.test": 10},
            },
            "job_variables": {"cpu_request": "100m"},
        },
    )["id"]

    def ended() -> str | None:
        state = platform.prefect("GET", f"flow_runs/{run}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state = wait_until(ended, READY, lambda: platform.story("flow"))
    assert state["type"] == "COMPLETED", (state["message"], platform.story("flow"))
    jobs = {job["metadata"]["name"]: job for job in platform.get("jobs")}
    job = next(j for j in jobs.values() if "prefect.io/flow-run-id" in j["metadata"]["labels"])
    stages = {j["metadata"]["annotations"]["blip/stage"] for j in jobs.values() if is_stage(j)}
    assert {"ingest@web", "ingest@human", "ingest@test", "validate", "tokenizer"} <= stages
    pod = job["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "blip-flow"
    assert pod["priorityClassName"] == "blip-flow"
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    experiments = platform.folder / "volumes/blip-workspace/.blip/experiments"
    assert list(experiments.glob("*/datasets/web/manifest.json"))


def is_stage(job: dict[str, Any]) -> bool:
    return "blip/stage" in job["metadata"].get("annotations", {})


@pytest.mark.parametrize(
    ("account", "allowed", "verb", "what"),
    [
        ("blip-worker", True, "create", "jobs"),
        ("blip-worker", True, "watch", "pods"),
        ("blip-worker", True, "get", "pods/log"),
        ("blip-worker", False, "get", "secrets"),
        ("blip-worker", False, "create", "pods"),
        ("blip-worker", False, "create", "pods/exec"),
        ("blip-flow", True, "delete", "jobs"),
        ("blip-flow", True, "create", "services"),
        ("blip-flow", False, "get", "secrets"),
        ("blip-flow", False, "create", "rolebindings"),
        ("blip-stage", False, "get", "pods"),
        ("blip-stage", False, "get", "secrets"),
        ("blip-server", False, "get", "pods"),
    ],
)
def test_who_may_do_what(
    platform: Platform, account: str, allowed: bool, verb: str, what: str
) -> None:
    assert may(platform, account, verb, what, platform.namespace) is allowed
    assert not may(platform, account, verb, what, "default")
    assert not may(platform, account, verb, what, "kube-system")


def may(platform: Platform, account: str, verb: str, what: str, namespace: str) -> bool:
    user = f"system:serviceaccount:{platform.namespace}:{account}"
    answer = platform.kubectl(
        "auth", "can-i", verb, what, f"--as={user}", "-n", namespace, check=False
    )
    return answer.strip() == "yes"


def test_the_worker_reads_no_secret_of_another_namespace(platform: Platform) -> None:
    """Not what the rules say, but what the API server answers to the token in the worker's pod."""
    pod = platform.kubectl("get", "pods", "-l", "app.kubernetes.io/component=worker", "-o", "name")
    script = """
import os, pathlib, ssl, sys, urllib.error, urllib.request
folder = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
context = ssl.create_default_context(cafile=folder / "ca.crt")
for path in sys.argv[1:]:
    request = urllib.request.Request(
        f"https://{os.environ['KUBERNETES_SERVICE_HOST']}/{path}",
        headers={"Authorization": f"Bearer {(folder / 'token').read_text()}"},
    )
    try:
        print(urllib.request.urlopen(request, context=context).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
    paths = [
        f"apis/batch/v1/namespaces/{platform.namespace}/jobs",
        f"api/v1/namespaces/{platform.namespace}/secrets",
        "api/v1/namespaces/kube-system/secrets",
        "apis/batch/v1/namespaces/default/jobs",
    ]
    answer = platform.kubectl("exec", pod.strip(), "--", "python", "-c", script, *paths)
    assert answer.split() == ["200", "403", "403", "403"]


def test_servers_and_stages_hold_no_token(platform: Platform) -> None:
    for pod in platform.get("pods"):
        account = pod["spec"].get("serviceAccountName")
        mounts = json.dumps(pod["spec"]["containers"])
        has_token = "/var/run/secrets/kubernetes.io/serviceaccount" in mounts
        assert has_token == (account in ("blip-worker", "blip-flow")), pod["metadata"]["name"]


def test_a_backup_can_be_read_back(platform: Platform) -> None:
    """The dumping and keeping that the CronJob does, by the pods' own scripts and Secrets."""
    names = platform.kubectl("get", "cronjobs", "-o", "name")
    assert names.strip() == "cronjob.batch/backup"
    template = platform.get("cronjobs")[0]["spec"]["jobTemplate"]
    spec = template["spec"]["template"]["spec"]
    dump = spec["initContainers"][0]
    platform._bring_program("postgres", {"template": {"spec": {**spec, "containers": [dump]}}})
    dump["command"] = ["sh", "/scripts/backup.sh", "/backup"]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "backup-now"},
        "spec": template["spec"],
    }
    platform.kubectl("apply", "-f", "-", text=yaml.safe_dump(job))
    wait_until(
        lambda: any(
            j["status"].get("succeeded")
            for j in platform.get("jobs")
            if j["metadata"]["name"] == "backup-now"
        ),
        READY,
        lambda: platform.story("backup"),
    )
    kept = sorted((platform.folder / "volumes/s3/backups/postgres").glob("*/*.dump"))
    assert [file.name for file in kept] == ["catalog.dump", "mlflow.dump", "prefect.dump"]
    assert all(file.read_bytes()[:5] == b"PGDMP" for file in kept)


def test_applying_again_changes_nothing(platform: Platform) -> None:
    before = {pod["metadata"]["name"] for pod in platform.get("pods")}
    platform.apply("postgres", "s3", "mlflow", "prefect", "worker")
    time.sleep(3)
    assert {pod["metadata"]["name"] for pod in platform.get("pods")} == before
