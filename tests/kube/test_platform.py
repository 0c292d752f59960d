"""The overlay `local` on a real cluster, put there by its one command: its pods run, a flow run becomes a Job, a backup
is brought back, and nobody may do too much.

What the test cluster lacks is given here and nowhere else. It can pull no image: PostgreSQL and rclone run from
the programs of this machine, in our own image. It has no storage classes: its volumes are folders of the node. It has
no DNS: see names.py. Kubernetes 1.20 knows CronJob and PodDisruptionBudget by their older versions.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from blip.tracker import read_journal
from tests.cli.conftest import TINY
from tests.kube import images
from tests.kube.names import Names
from tests.kube.test_overlays import needs_kustomize

pytestmark = [pytest.mark.kube, needs_kustomize]

ROOT = Path(__file__).parents[2]
NAMESPACE = "blip"
PORTS = {"mlflow": 5000, "prefect": 4200}
READY = 600.0

# What the official image does at its first start.
POSTGRES = """
if [ ! -e "$PGDATA" ]; then
  printf %s "$POSTGRES_PASSWORD" >/tmp/password
  initdb --username "$POSTGRES_USER" --pwfile /tmp/password --auth-host scram-sha-256 --auth-local trust >/tmp/log
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl --wait --options "-c listen_addresses=" start >/tmp/log
  sh /docker-entrypoint-initdb.d/databases.sh
  pg_ctl --wait stop >/tmp/log
fi
exec postgres -c listen_addresses='*'
"""


class Platform:
    """The overlay `local` on a cluster."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self.kubeconfig, self.folder = kubeconfig, folder
        self.names = Names(kubeconfig)
        self.began = 0.0  # when it was put there
        self.overlay = folder / "k8s/overlays/local"
        shutil.copytree(ROOT / "k8s", folder / "k8s", ignore=shutil.ignore_patterns("secrets"))
        adapt(self.overlay / "kustomization.yaml")

    def run(self, *command: str) -> str:
        """Run a command as a person would who has the checkout and the cluster's KUBECONFIG."""
        result = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + self.kubectl("get", "pods", "-o", "wide")
        return result.stdout

    def deploy(self) -> str:
        """Put the platform on the cluster and wait until it is ready."""
        return self.run("make", f"--file={ROOT / 'Makefile'}", "deploy-local")

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}"]
        result = subprocess.run(
            [*command, *arguments], input=text, capture_output=True, text=True, check=False
        )
        assert not check or result.returncode == 0, result.stderr + result.stdout
        return result.stdout if result.returncode == 0 else result.stderr

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

    def ask(
        self, service: str, method: str, path: str, body: Any = None, password: str | None = None
    ) -> Any:
        """Ask a server, by default with the password of Prefect's Secret."""
        (address,) = self.names.addresses(service, NAMESPACE)
        password = password or secret(self.overlay, "prefect", "PREFECT_API_AUTH_STRING")
        request = urllib.request.Request(
            f"http://{address}:{PORTS[service]}/api/{path}",
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

    def make_volumes(self) -> list[str]:
        """Make a folder of the node for each claim; give the names of their volumes."""
        names = []
        for claim in ("blip-workspace", "s3", "data-postgres-0"):
            folder = self.folder / "volumes" / claim
            folder.mkdir(parents=True)
            folder.chmod(0o777)
            names.append(f"blip-test-{claim}-{uuid.uuid4().hex[:8]}")
            volume = {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": names[-1]},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "capacity": {"storage": "50Gi"},
                    "hostPath": {"path": str(folder)},
                    "claimRef": {"namespace": NAMESPACE, "name": claim},
                },
            }
            self.kubectl("apply", "-f", "-", text=yaml.safe_dump(volume))
        return names


def adapt(file: Path) -> None:
    """Let a kustomization be applied to this cluster."""
    program = {
        "env": [
            {"name": "PATH", "value": f"/host/{debians()}:/opt/venv/bin:/usr/bin:/bin"},
            {"name": "LD_LIBRARY_PATH", "value": "/host/lib/x86_64-linux-gnu"},
        ],
        "volumeMounts": [{"name": "host", "mountPath": "/host", "readOnly": True}],
    }
    postgres = pod(
        Path("/usr"),
        containers=[{"name": "postgres", "command": ["sh", "-euc", POSTGRES], **program}],
        securityContext={"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000},  # whom it knows
    )
    dump = pod(Path("/usr"), initContainers=[{"name": "dump", **program}])
    rclone = {"name": "s3", "command": ["/host"], "volumeMounts": program["volumeMounts"]}
    s3 = pod(Path(sys.prefix) / "bin/rclone", containers=[rclone])
    kustomization = yaml.safe_load(file.read_text())
    for image in kustomization["images"]:
        image.update(newName="blip", newTag="cpu")
    kustomization["patches"] += [
        patch("apps/v1", "StatefulSet", "postgres", postgres),
        patch("apps/v1", "Deployment", "s3", s3),
        patch("batch/v1", "CronJob", "backup", {"jobTemplate": {"spec": dump}}),
        older("CronJob", "batch/v1beta1"),
        older("PodDisruptionBudget", "policy/v1beta1"),
    ]
    file.write_text(yaml.safe_dump(kustomization))


def pod(program: Path, **spec: Any) -> dict[str, Any]:
    """Give what makes a pod's template one with a program, or a folder of them, of this machine."""
    volume = {"name": "host", "hostPath": {"path": str(program)}}
    return {"template": {"spec": {**spec, "volumes": [volume]}}}


def patch(version: str, kind: str, name: str, spec: dict[str, Any]) -> dict[str, str]:
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
    return {"patch": yaml.safe_dump(document)}


def older(kind: str, version: str) -> dict[str, Any]:
    change = {"op": "replace", "path": "/apiVersion", "value": version}
    return {"target": {"kind": kind}, "patch": json.dumps([change])}


def debians() -> str:
    """Give the folder below /usr with Debian's PostgreSQL: Prefect needs an extension that the wheels lack."""
    found = sorted(Path("/usr").glob("lib/postgresql/*/bin/initdb"))
    if not found:
        pytest.skip("needs Debian's PostgreSQL")
    return str(found[-1].parent.relative_to("/usr"))


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
def platform(kubeconfig: Path, host_address: str, image: str) -> Iterator[Platform]:
    """The platform, from nothing to a worker that waits for flow runs."""
    folder = Path(tempfile.mkdtemp(prefix="blip-platform-", dir="/var/tmp"))
    folder.chmod(0o755)
    node = images.Node(kubeconfig)
    if not node.has(image):
        node.give(image, folder)
    node.tag(image, images.IMAGE)
    platform = Platform(kubeconfig, folder)
    there = ("get", "namespaces", NAMESPACE, "--ignore-not-found", "--output=name")
    wait_until(lambda: not platform.kubectl(*there), 120, lambda: "a platform is there already")
    volumes = platform.make_volumes()
    try:
        with platform.names.serve(host_address):
            platform.began = time.time()
            platform.deploy()
            load = os.getloadavg()[0]
            took = time.time() - platform.began
            sys.stdout.write(f"make deploy-local: ready after {took:.0f} s (load {load:.1f})\n")
            sys.stdout.write(platform.kubectl("get", "all"))
            yield platform
    finally:
        platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
        platform.kubectl("delete", "persistentvolume", *volumes, "--wait=false", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_from_kubectl_apply_to_the_first_step_of_a_training(platform: Platform) -> None:
    """A flow run is a Job of our template, and its stages are Jobs."""
    pools = {pool["name"] for pool in platform.ask("prefect", "POST", "work_pools/filter", {})}
    assert pools == {"blip", "blip-kubernetes"}
    found = platform.ask("prefect", "GET", "deployments/name/pretrain/kubernetes")
    parameters = {"overrides": {**TINY, "pretrain.log_every": 1}}
    create = f"deployments/{found['id']}/create_flow_run"
    run = platform.ask("prefect", "POST", create, {"parameters": parameters})["id"]

    def ended() -> dict[str, Any] | None:
        state: dict[str, Any] = platform.ask("prefect", "GET", f"flow_runs/{run}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state = wait_until(ended, READY, lambda: platform.story("flow"))
    assert state["type"] == "COMPLETED", (state["message"], platform.story("flow"))
    jobs = platform.get("jobs")
    stages = {j["metadata"]["annotations"]["blip/stage"] for j in jobs if is_stage(j)}
    prepared = {"ingest@web", "ingest@human", "ingest@test", "validate", "tokenizer"}
    assert stages >= {*prepared, "pretrain@unfiltered", "pretrain@human"}
    job = next(j for j in jobs if "prefect.io/flow-run-id" in j["metadata"]["labels"])
    pod = job["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "blip-flow"
    assert pod["priorityClassName"] == "blip-flow"
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    (experiment,) = (platform.folder / "volumes/blip-workspace/.blip/experiments").glob("*/runs")
    steps = [
        event["time"] - platform.began
        for journal in experiment.glob("pretrain-*/journal.jsonl")
        for event in read_journal(journal)[0]
        if event["event"] == "metrics"
    ]
    load = os.getloadavg()[0]
    sys.stdout.write(f"first step of a training {min(steps):.0f} s after kubectl apply ({load=})\n")


def is_stage(job: dict[str, Any]) -> bool:
    return "blip/stage" in job["metadata"].get("annotations", {})


def test_the_databases_and_buckets_are_there(platform: Platform) -> None:
    assert {"catalog", "mlflow", "prefect"} <= set(databases(platform))
    buckets = [platform.folder / "volumes/s3" / name for name in ("mlflow", "dvc", "backups")]
    wait_until(lambda: all(bucket.is_dir() for bucket in buckets), READY)


def databases(platform: Platform) -> list[str]:
    ask = ["psql", "--username", "postgres", "-Atc", "SELECT datname FROM pg_database"]
    return platform.kubectl("exec", "postgres-0", "--", *ask).split()


def test_mlflow_keeps_artifacts_in_the_bucket(platform: Platform) -> None:
    script = (
        "import mlflow, pathlib; mlflow.set_experiment('smoke'); "
        "run = mlflow.start_run(); mlflow.log_metric('loss', 1.0); "
        "pathlib.Path('/tmp/note').write_text('kept'); mlflow.log_artifact('/tmp/note'); "
        "print(mlflow.artifacts.load_text(mlflow.get_artifact_uri('note')))"
    )
    command = ["env", "MLFLOW_TRACKING_URI=http://mlflow:5000", "python", "-c", script]
    answer = platform.kubectl("exec", "deployment/mlflow", "--container=mlflow", "--", *command)
    assert "kept" in answer
    assert list((platform.folder / "volumes/s3/mlflow/artifacts").rglob("note"))


def test_the_server_asks_for_its_password(platform: Platform) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        platform.ask("prefect", "POST", "flows/count", {}, password="blip:guessed")
    assert refused.value.code == 401


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
    assert may(platform, account, verb, what, NAMESPACE) is allowed
    assert not may(platform, account, verb, what, "default")
    assert not may(platform, account, verb, what, "kube-system")


def may(platform: Platform, account: str, verb: str, what: str, namespace: str) -> bool:
    user = f"system:serviceaccount:{NAMESPACE}:{account}"
    answer = platform.kubectl(
        "auth", "can-i", verb, what, f"--as={user}", "-n", namespace, check=False
    )
    return answer.strip() == "yes"


def test_the_worker_reads_no_secret_of_another_namespace(platform: Platform) -> None:
    """Not what the rules say, but what the API server answers to the token in the worker's pod."""
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
        f"apis/batch/v1/namespaces/{NAMESPACE}/jobs",
        f"api/v1/namespaces/{NAMESPACE}/secrets",
        "api/v1/namespaces/kube-system/secrets",
        "apis/batch/v1/namespaces/default/jobs",
    ]
    answer = platform.kubectl("exec", "deployment/worker", "--", "python", "-c", script, *paths)
    assert answer.split() == ["200", "403", "403", "403"]


def test_servers_and_stages_hold_no_token(platform: Platform) -> None:
    for pod in platform.get("pods"):
        account = pod["spec"].get("serviceAccountName")
        mounts = json.dumps(pod["spec"]["containers"])
        has_token = "/var/run/secrets/kubernetes.io/serviceaccount" in mounts
        assert has_token == (account in ("blip-worker", "blip-flow")), pod["metadata"]["name"]


def test_a_backup_is_brought_back_as_documented(platform: Platform) -> None:
    """The Job that the CronJob makes at night, and then the very commands of the documentation."""
    create = ("mlflow", "POST", "2.0/mlflow/experiments/create")
    platform.ask(*create, {"name": "before the backup"})
    (cronjob,) = platform.get("cronjobs")
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "backup-now"}}
    job["spec"] = cronjob["spec"]["jobTemplate"]["spec"]
    platform.kubectl("apply", "-f", "-", text=yaml.safe_dump(job))
    done = ("wait", "--for=condition=complete", f"--timeout={READY:.0f}s", "job/backup-now")
    assert "condition met" in platform.kubectl(*done, check=False), platform.story("backup")
    (night,) = (platform.folder / "volumes/s3/backups/postgres").iterdir()
    kept = sorted(file.name for file in night.iterdir())
    assert kept == ["catalog.dump", "mlflow.dump", "prefect.dump"]

    platform.ask(*create, {"name": "after the backup"})
    text = (ROOT / "docs/kubernetes.md").read_text().partition("\n### Backup and restore\n")[2]
    commands = text.partition("```sh\n")[2].partition("```")[0].replace("NIGHT", night.name)
    said = platform.run("bash", "-euo", "pipefail", "-c", commands)
    assert night.name in said.split()  # they are listed first
    search = ("mlflow", "POST", "2.0/mlflow/experiments/search", {"max_results": 100})
    names = {each["name"] for each in platform.ask(*search)["experiments"]}
    assert "before the backup" in names
    assert "after the backup" not in names
    assert len([name for name in databases(platform) if name.startswith("mlflow")]) == 2, said


def test_deploying_again_changes_nothing(platform: Platform) -> None:
    components = "app.kubernetes.io/component in (postgres, s3, mlflow, prefect, worker)"

    def pods() -> set[str]:
        return {pod["metadata"]["uid"] for pod in platform.get("pods", "-l", components)}

    before = pods()
    said = platform.deploy()
    assert "deployment.apps/worker unchanged" in said
    assert "job.batch/buckets created" in said  # another image would not be taken by the ended one
    assert pods() == before
