"""A real cluster for the tests marked `kube`, a namespace of their own, and a volume that pods share with us.

`BLIP_KUBECONFIG` names a running cluster of one node, which is this machine; without it one is started from the
reference material, as root with containerd, or the tests are skipped.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from blip.config import merge, read_yaml
from blip.integrations.experiment import run_experiment
from tests.cli.conftest import TINY
from tests.kube import admission
from tests.kube.admission import ENVIRONMENT, IMAGE, LABEL, ROOT

CARRIED = ("blip", "dvc.yaml", "params.yaml", "mlflow.yaml", ".dvc", ".dvcignore", ".gitignore")

_spec = importlib.util.spec_from_file_location(
    "toy_project", Path(__file__).parents[1] / "integrations" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_toy_project = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_toy_project)
toy_template = _toy_project.toy_template


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[Path]:
    """The kubeconfig of a cluster's administrator; the file `env` beside it says more of the cluster."""
    if named := os.environ.get("BLIP_KUBECONFIG"):
        yield Path(named)
        return
    if os.geteuid() or not shutil.which("containerd") or not shutil.which("runc"):
        pytest.skip("needs a cluster: set BLIP_KUBECONFIG, or be root and have containerd")
    parts = request.getfixturevalue("shared") / "kube"
    if not parts.is_dir():
        pytest.skip("needs a cluster: set BLIP_KUBECONFIG")
    folder = Path(tempfile.mkdtemp(prefix="kube-"))  # short: it holds sockets
    environment = {**os.environ, "KUBEBUILDER_ASSETS": str(_binaries(parts, folder / "bin"))}
    environment["KUBE_IMAGES"] = f"{_pause(parts, folder)} {_python(parts, folder)}"
    cluster = folder / "cluster"
    try:
        start = subprocess.run(
            [str(parts / "start-cluster.sh"), str(cluster)],
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        yield Path(start.stdout.strip())
    finally:
        stop = [str(parts / "stop-cluster.sh"), str(cluster), "--purge"]
        subprocess.run(stop, env=environment, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _binaries(parts: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("hyperkube", "etcd"):
        _unpack(parts / f"{name}.xz", folder / name).chmod(0o755)
    for name in ("apiserver", "controller-manager", "scheduler", "let", "ctl"):
        dash = "" if name in ("let", "ctl") else "-"
        (folder / f"kube{dash}{name}").symlink_to("hyperkube")
    return folder


def _pause(parts: Path, folder: Path) -> Path:
    return _unpack(parts / "pause.tar.xz", folder / "pause.tar")


def _python(parts: Path, folder: Path) -> Path:
    prefix = subprocess.check_output(
        ["python3", "-c", "import sys; print(sys.base_prefix)"], text=True
    )
    script, image = parts / "mk-python-image.sh", folder / "python.tar"
    subprocess.run(
        [str(script), prefix.strip(), str(folder / "work"), str(image)],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return image


def _unpack(packed: Path, target: Path) -> Path:
    with target.open("wb") as file:
        subprocess.run(["xz", "-dc", str(packed)], stdout=file, check=True)
    return target


@pytest.fixture(scope="session")
def host_address(kubeconfig: Path) -> str:
    """Where pods find servers on this machine's loopback."""
    file = kubeconfig.with_name("env")
    lines = file.read_text().splitlines() if file.exists() else []
    addresses = [line.partition("=")[2] for line in lines if line.startswith("BR_IP=")]
    if not addresses:
        pytest.skip("needs a cluster that says how pods reach this machine")
    return addresses[0]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the image's build has its configuration."""
    return tmp_path_factory.mktemp("image")


@pytest.fixture(scope="session")
def image(kubeconfig: Path, image_folder: Path) -> str:
    """The image of this checkout, built here; the node has it only once a test gives it to it."""
    from tests.kube import images

    if os.geteuid() or not shutil.which("buildah") or not shutil.which("podman"):
        pytest.skip("needs buildah and podman, as root")
    if not images.has_image(images.BASE, image_folder):
        images.Node(kubeconfig).take(images.BASE, image_folder)
    began = time.monotonic()
    images.build(images.ROOT, image_folder)
    took = time.monotonic() - began
    size = images.size(images.IMAGE, image_folder)
    sys.stdout.write(f"{images.IMAGE}: {size / 1e9:.2f} GB, built in {took:.0f} s\n")
    return images.tag_by_content(images.IMAGE, image_folder)


class Kubectl:
    """Calls of `kubectl` as the administrator."""

    def __init__(self, kubeconfig: Path, namespace: str = "default") -> None:
        self.kubeconfig, self.namespace = kubeconfig, namespace

    def __call__(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        ours = self.kubeconfig.parents[1] / "bin" / "kubectl"  # of a cluster that we started
        program = shutil.which("kubectl") or str(ours)
        command = [program, f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}"]
        result = subprocess.run(
            [*command, *arguments], input=text, capture_output=True, text=True, check=False
        )
        assert not check or result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture
def namespace(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh namespace, deleted afterwards; KUBECONFIG names its cluster."""
    name = f"blip-test-{uuid.uuid4().hex[:8]}"
    kubectl = Kubectl(kubeconfig)
    kubectl("create", "namespace", name)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    try:
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def kubectl(kubeconfig: Path, namespace: str) -> Kubectl:
    """`kubectl` in the namespace."""
    kubectl = Kubectl(kubeconfig, namespace)
    wait_until(lambda: "default" in kubectl("get", "serviceaccounts", "-o", "name"))
    return kubectl


def wait_until(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    """Give the first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return answer


@pytest.fixture(scope="session")
def webhook(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A webhook that gives pods this machine's code; its name is the label of namespaces that want it."""
    folder = tmp_path_factory.mktemp("webhook")
    folder = folder.rename(folder.with_name(f"webhook-{uuid.uuid4().hex[:8]}"))
    kubectl = Kubectl(kubeconfig)
    with admission.serve(folder) as configuration:
        kubectl("apply", "-f", "-", text=yaml.safe_dump(configuration))
        try:
            yield folder.name
        finally:
            kubectl("delete", "mutatingwebhookconfiguration", folder.name)


@pytest.fixture
def volume(kubectl: Kubectl, webhook: str) -> Iterator[Path]:
    """A folder that is a volume of the namespace, claimed as `workspace`, at the same path in the pods."""
    kubectl("label", "namespace", kubectl.namespace, f"{LABEL}={webhook}")
    kubectl("create", "serviceaccount", "stage")
    folder = Path(tempfile.mkdtemp(prefix="blip-volume-", dir="/var/tmp"))
    folder.chmod(0o777)
    old = os.umask(0)  # what we write the pods' user may change
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    disk = {
        **_named("PersistentVolume", kubectl.namespace),
        "spec": {
            **spec,
            "capacity": {"storage": "1Gi"},
            "hostPath": {"path": str(folder)},
            "claimRef": {"namespace": kubectl.namespace, "name": "workspace"},
        },
    }
    claim = {
        **_named("PersistentVolumeClaim", "workspace"),
        "spec": {
            **spec,
            "volumeName": kubectl.namespace,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    kubectl("apply", "-f", "-", text=yaml.safe_dump_all([disk, claim]))
    wait_until(lambda: "Bound" in kubectl("get", "persistentvolumeclaim", "workspace"))
    try:
        yield folder
    finally:
        os.umask(old)
        kubectl("delete", "jobs", "--all", "--wait=true")
        kubectl("delete", "persistentvolume", kubectl.namespace, "--wait=false")
        shutil.rmtree(folder, ignore_errors=True)


def _named(kind: str, name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}


@pytest.fixture
def cluster_file(
    volume: Path, kubectl: Kubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What Jobs look like in the namespace, with their workspaces on the volume; BLIP_CLUSTER names it."""
    place = {"cpu": "100m", "memory": "1Gi", "gpus": 0, "shm": "64Mi", "nodes": 1, "parts": 1}
    settings = {
        "namespace": kubectl.namespace,
        "image": IMAGE,
        "image_pull_policy": "IfNotPresent",
        "service_account": "stage",
        "queue": None,
        "priority_class": None,
        "node_selector": {},
        "tolerations": [],
        "runtime_class": None,
        "storage": {"kind": "shared", "claim": "workspace", "mount": str(volume)},
        "env": {**ENVIRONMENT, "TOY_CONTROL": str(volume / "control")},
        "env_from": [],
        "grace_seconds": 30,
        "ttl_seconds": 600,
        "retries": 0,
        "patience_seconds": 10,
        "stages": {"default": place},
    }
    file = tmp_path / "jobs.yaml"
    file.write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("BLIP_CLUSTER", str(file))
    return file


def change(file: Path, **values: Any) -> None:
    """Change top-level keys of a YAML file."""
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}))


def place(template: Path, volume: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy a project onto the volume, where the pods' user may write it, and enter it."""
    root = volume / "project"
    shutil.copytree(template, root, symlinks=True)
    for path in (root, *root.rglob("*")):
        if not path.is_symlink() and path.stat().st_mode & 0o200:
            path.chmod(0o777 if path.is_dir() else 0o666)
    monkeypatch.setenv("BLIP_TRACKING", "off")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def toy(toy_template: Path, volume: Path, cluster_file: Path, monkeypatch: Any) -> Any:
    """The toy project of the integrations on the volume, in the current directory."""
    root, control = place(toy_template, volume, monkeypatch), volume / "control"
    control.mkdir()
    monkeypatch.setenv("TOY_CONTROL", str(control))
    return _toy_project.Toy(root, control)


@pytest.fixture(scope="session")
def drawn_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project at tiny size with its raw data, in a repository of its own, and nothing run yet."""
    root = tmp_path_factory.mktemp("tiny") / "project"
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in filter(None, files.split("\0")):
        if name.split("/")[0] in CARRIED and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    params = merge(read_yaml(ROOT / "params.yaml"), TINY, root / "params.yaml")
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    _toy_project.git(root, "init", "--quiet")
    subprocess.run(
        [sys.executable, "-m", "blip", "world", "data"],
        cwd=root,
        env={**os.environ, "BLIP_TRACKING": "off"},
        check=True,
    )
    _toy_project.git(root, "add", ".")
    _toy_project.git(root, "commit", "--quiet", "-m", "tiny")
    return root


@pytest.fixture(scope="session")
def prepared_template(drawn_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, ready for pre-training: run on this machine up to the vocabulary."""
    root = tmp_path_factory.mktemp("prepared") / "project"
    shutil.copytree(drawn_template, root, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLIP_TRACKING", "off")
        patch.chdir(root)
        _, code = run_experiment(
            root, targets=("tokenizer",), say=lambda *_: None, done=lambda _: None, slots=1
        )
    assert code == 0
    return root
