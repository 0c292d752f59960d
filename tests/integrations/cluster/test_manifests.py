"""What a stage's Jobs look like: by the published schemas, by the rules beyond them, and as a reader sees them."""

import copy
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path, PurePath

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from blip.errors import ConfigError
from blip.integrations.cluster import manifests
from blip.integrations.cluster.manifests import Manifest, render, to_yaml
from blip.integrations.cluster.settings import Cluster, load_cluster
from blip.integrations.versioning import Node
from tests.integrations.cluster.conftest import KEY, OVERLAYS, expanded, stage

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # pygtrie within DVC

ROOT = OVERLAYS.parents[1]
KUBERNETES = "1.37"
WORKSPACE = PurePath("/workspace/experiments/one")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
DNS = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

SHAPES: list[tuple[str, dict[str, int]]] = [
    ("select", {}),
    ("evaluate_filter", {"gpus": 1}),
    ("pretrain@unfiltered", {"nodes": 1, "gpus": 0}),
    ("pretrain@unfiltered", {"nodes": 1, "gpus": 8}),
    ("pretrain@unfiltered", {"nodes": 4, "gpus": 8}),
    ("finetune@captioner", {"nodes": 2, "gpus": 0}),
    ("evaluate@human_retrieval", {"nodes": 2, "gpus": 8}),
    ("ingest@web", {"parts": 3}),
    ("caption", {"parts": 12, "gpus": 1}),
    ("score", {"parts": 1}),
]


def shapes(cluster: Cluster) -> list[list[Manifest]]:
    return [render(stage(n, 60.5), KEY, cluster, WORKSPACE, **how) for n, how in SHAPES]


def bucket(cluster: Cluster) -> Cluster:
    document = cluster.model_dump() | {"storage": {"kind": "s3", "secret": "blip-s3"}}
    return Cluster.model_validate(document)


def job_of(documents: list[Manifest]) -> Manifest:
    return next(d for d in documents if d["kind"] == "Job")


def pod_of(job: Manifest) -> Manifest:
    return job["spec"]["template"]["spec"]


def command_of(job: Manifest) -> str:
    return expanded(pod_of(job)["containers"][0]["command"][-1])


def test_every_shape_follows_the_published_schema(cluster: Cluster) -> None:
    alone = [render(stage("select"), KEY, bucket(cluster), manifests.IN_IMAGE)]
    for documents in shapes(cluster) + alone:
        for document in documents:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
            if document["kind"] == "Job":
                check_rules(document)


def check_rules(job: Manifest) -> None:
    """Hold a Job against what the API server asks beyond the schema."""
    spec, pod = job["spec"], pod_of(job)
    rules = spec["podFailurePolicy"]["rules"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy and backoffLimitPerIndex ask for it
    assert spec["podReplacementPolicy"] == "Failed"  # as does podFailurePolicy
    names = {container["name"] for container in pod["containers"]}
    for rule in rules:
        if codes := rule.get("onExitCodes"):
            assert codes["containerName"] in names
            assert codes["values"] == sorted(set(codes["values"]) - {0})
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
    indexed = spec.get("completionMode") == "Indexed"
    assert indexed or not {"backoffLimitPerIndex", "successPolicy"} & set(spec)
    assert not {"backoffLimitPerIndex", "backoffLimit"} <= set(spec)
    if indexed:
        assert spec["completions"] == spec["parallelism"] > 1
        assert DNS.fullmatch(f"{job['metadata']['name']}-{spec['completions'] - 1}")
    for value in job["metadata"]["labels"].values():
        assert LABEL.fullmatch(value)
    assert spec["template"]["metadata"]["labels"].items() <= job["metadata"]["labels"].items()


def test_the_schema_refuses_what_is_no_field(local: Cluster) -> None:
    job = job_of(render(stage("select"), KEY, local, WORKSPACE))
    job["spec"]["backofLimit"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_pod_security_restricted_holds(cluster: Cluster) -> None:
    """The standard's rules: kubernetes.io/docs/concepts/security/pod-security-standards."""
    for document in [d for documents in shapes(cluster) for d in documents if d["kind"] == "Job"]:
        pod = pod_of(document)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for volume in pod["volumes"]:
            assert set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim", "secret"}
        (container,) = pod["containers"]
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert pod["automountServiceAccountToken"] is False


def test_a_small_stage_is_one_pod_that_runs_the_command_of_the_graph(local: Cluster) -> None:
    (job,) = render(stage("select", 90.2), KEY, local, WORKSPACE)
    assert re.fullmatch(r"blip-select-[0-9a-f]{10}", job["metadata"]["name"])
    assert job["metadata"]["labels"][manifests.KEY] == KEY[:63]
    assert job["metadata"]["annotations"][manifests.COMMAND] == stage("select").command
    assert job["spec"]["activeDeadlineSeconds"] == 91
    assert job["spec"]["backoffLimit"] == local.retries
    assert "suspend" not in job["spec"]
    container = pod_of(job)["containers"][0]
    assert container["command"] == ["sh", "-c", f"exec {stage('select').command}"]
    assert container["workingDir"] == str(WORKSPACE)
    assert {"name": "BLIP_TRACKING", "value": "journal"} in container["env"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert "activeDeadlineSeconds" not in render(stage("select"), KEY, local, WORKSPACE)[0]["spec"]


@pytest.mark.parametrize(
    "command", ["echo $$ $(HOME) $HOME ${HOME}", "echo '$$(HOME)'", "x $((1 + 1)) $"]
)
def test_the_pod_gets_the_command_as_the_graph_has_it(local: Cluster, command: str) -> None:
    """Kubernetes has a meaning of its own for `$$` and `$(NAME)`, which the shell is to see."""
    (job,) = render(Node("select", command), KEY, local, WORKSPACE)
    assert command_of(job) == f"exec {command}"


def test_the_gpu_overlay_asks_for_gpus_and_the_queue() -> None:
    cluster = load_cluster(OVERLAYS / "gpu" / "jobs.yaml")
    _, job = render(stage("pretrain@human"), KEY, cluster, WORKSPACE)
    assert job["metadata"]["labels"][manifests.QUEUE] == cluster.queue
    assert job["spec"]["suspend"] is True
    assert job["spec"]["completions"] == 4
    pod = pod_of(job)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["priorityClassName"] == cluster.priority_class
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}} in pod["volumes"]
    assert pod["terminationGracePeriodSeconds"] == 300
    assert "--shutdown-timeout 290 -m blip pretrain" in command_of(job)


def test_several_nodes_find_the_first_of_them_through_the_service(local: Cluster) -> None:
    service, job = render(stage("pretrain@human"), KEY, local, WORKSPACE, nodes=3, gpus=2)
    name = job["metadata"]["name"]
    assert service["metadata"]["name"] == pod_of(job)["subdomain"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    port = service["spec"]["ports"][0]["port"]
    assert f"--rdzv-endpoint {name}-0.{name}:{port} " in command_of(job)
    assert "--nnodes 3 " in command_of(job)
    assert "--nproc-per-node 2 " in command_of(job)
    assert job["spec"]["backoffLimit"] == 3 * local.retries
    assert job["spec"]["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}


def test_one_node_of_several_gpus_is_one_pod_by_torchrun(local: Cluster) -> None:
    (job,) = render(stage("finetune@filter"), KEY, local, WORKSPACE, gpus=4)
    assert "completionMode" not in job["spec"]
    assert "torchrun --standalone --nproc-per-node 4 " in command_of(job)


def test_an_evaluation_goes_over_nodes_as_a_training_does(local: Cluster) -> None:
    node = Node("evaluate@human_retrieval", "blip evaluate retrieval --out out")
    service, job = render(node, KEY, local, WORKSPACE, nodes=2, gpus=8)
    assert (service["kind"], job["spec"]["completions"]) == ("Service", 2)
    assert "--nproc-per-node 8 " in command_of(job)
    assert command_of(job).endswith("-m blip evaluate retrieval --out out")


def test_parts_come_before_the_rest_which_waits(cluster: Cluster) -> None:
    parts, rest = render(stage("caption"), KEY, cluster, WORKSPACE, parts=8, gpus=0)
    assert command_of(parts).endswith("--out out --part $JOB_COMPLETION_INDEX/8")
    assert parts["spec"]["completions"] == 8
    assert parts["spec"]["backoffLimitPerIndex"] == cluster.retries
    assert command_of(rest) == f"exec {stage('caption').command}"
    assert rest["metadata"]["annotations"][manifests.AFTER] == parts["metadata"]["name"]
    assert rest["spec"]["suspend"] is True
    assert manifests.QUEUE not in rest["metadata"]["labels"]  # Kueue would start it at once
    before = copy.deepcopy(rest)
    resumed = manifests.resumed(rest, cluster)
    assert rest == before
    assert resumed["spec"]["suspend"] is bool(cluster.queue)
    assert resumed["metadata"]["labels"].get(manifests.QUEUE) == cluster.queue
    text = to_yaml([parts, rest], cluster)
    assert f"# Waits until it is resumed, when {parts['metadata']['name']} is complete" in text


def test_what_comes_from_outside_is_not_counted_and_the_users_error_ends_it(local: Cluster) -> None:
    (job,) = render(stage("select"), KEY, local, WORKSPACE)
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {
        code: rule["action"]
        for rule in rules
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert codes == {2: "FailJob", 75: "Ignore", 143: "Ignore"}  # 1, 137: counted
    assert {"type": "DisruptionTarget", "status": "True"} in rules[1]["onPodConditions"]


def test_with_a_bucket_alone_the_pod_has_a_folder_of_its_own_and_the_secret(local: Cluster) -> None:
    (job,) = render(stage("select"), KEY, bucket(local), manifests.IN_IMAGE)
    assert {"name": "workspace", "emptyDir": {}} in pod_of(job)["volumes"]
    container = pod_of(job)["containers"][0]
    assert container["envFrom"][-1] == {"secretRef": {"name": "blip-s3"}}
    assert "BLIP_TRACKING" not in {variable["name"] for variable in container["env"]}
    assert "# To read, not to apply" in to_yaml([job], bucket(local))
    assert "blip k8s submit select\n" in to_yaml([job], bucket(local))


def test_with_a_bucket_alone_each_part_brings_the_workspace_itself(local: Cluster) -> None:
    jobs = render(stage("caption"), KEY, bucket(local), manifests.IN_IMAGE, parts=2)
    words = [shlex.split(command_of(job)) for job in jobs]
    command = stage("caption").command
    assert [line[:5] for line in words] == 2 * [
        ["exec", "python", "-m", manifests.IN_POD, "caption"]
    ]
    assert [line[5] for line in words] == [f"{command} --part $JOB_COMPLETION_INDEX/2", command]


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("select", {"nodes": 2}, "only evaluate, finetune, pretrain go over several"),
        ("evaluate_filter", {"gpus": 2}, "only evaluate, finetune, pretrain go over several"),
        ("pretrain@human", {"parts": 2}, "only caption, ingest, score go over parts"),
        ("pretrain@human", {"nodes": 0}, "nodes and parts begin at 1"),
    ],
)
def test_what_does_not_go_over_several_says_so(
    local: Cluster, name: str, how: dict[str, int], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: .*{said}"):
        render(stage(name), KEY, local, WORKSPACE, **how)


def test_storage_that_does_not_fit_says_so(local: Cluster) -> None:
    with pytest.raises(ConfigError, match="/home/me is not on the shared volume"):
        render(stage("select"), KEY, local, PurePath("/home/me"))
    with pytest.raises(ConfigError, match="storage of kind s3 cannot"):
        render(stage("pretrain@human"), KEY, bucket(local), manifests.IN_IMAGE, nodes=2)
    with pytest.raises(ConfigError, match=r"data.dvc is data, not a stage"):
        render(Node("data.dvc", None), KEY, local, WORKSPACE)


@given(st.text(min_size=1), st.text(), st.sampled_from([{}, {"nodes": 99}, {"parts": 9999}]))
def test_any_stage_and_key_give_valid_names_and_labels(
    name: str, key: str, how: dict[str, int]
) -> None:
    cluster = load_cluster(OVERLAYS / "local" / "jobs.yaml")
    verb = "pretrain@" if "nodes" in how else "caption@" if "parts" in how else ""
    documents = render(Node(verb + name, "blip x"), key, cluster, WORKSPACE, **how)
    for document in documents:
        names = [document["metadata"]["name"]]
        if count := document["spec"].get("completions"):
            names.append(f"{names[0]}-{count - 1}-abcde")  # of a pod
        for each in names:
            assert DNS.fullmatch(each), each
        for value in document["metadata"]["labels"].values():
            assert LABEL.fullmatch(value), value


def test_equal_work_has_one_name_in_a_workspace(local: Cluster) -> None:
    def name(of: str, key: str, workspace: PurePath = WORKSPACE) -> str:
        return str(render(stage(of), key, local, workspace)[0]["metadata"]["name"])

    other = "f" + KEY[1:]
    assert name("finetune@a", KEY) == name("finetune@a", KEY)
    assert len({name("finetune@a", KEY), name("finetune@a", other), name("finetune@b", KEY)}) == 3
    assert name("finetune@a", KEY) != name("finetune@a", KEY, PurePath("/workspace/two"))
    assert name("finetune@a", "") == "blip-finetune-a"


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_]{1,9}", fullmatch=True),
        st.one_of(st.text(), st.sampled_from(["1e3", "12e4", "0x1", "yes", "n", "null", "1:20"])),
    )
)
def test_a_reader_of_yaml_1_1_or_1_2_gets_back_what_was_meant(env: dict[str, str]) -> None:
    cluster = load_cluster(OVERLAYS / "local" / "jobs.yaml").model_copy(update={"env": env})
    documents = render(stage("pretrain@x"), "1e" + "0" * 62, cluster, WORKSPACE, nodes=2)
    text = to_yaml(documents, cluster)
    assert list(yaml.safe_load_all(text)) == documents
    reader = YAML(typ="safe", pure=True)  # of 1.2, as Go's is for the most part
    assert list(reader.load_all(io.StringIO(text))) == documents
    assert "&id" not in text


def test_every_stage_of_the_graph_is_rendered_by_the_command_line(tmp_path: Path) -> None:
    """From any checkout, with a note where the digest cannot be known yet; nothing is changed."""
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {name for name in manifests.TOGETHER | manifests.PARTED} <= set(graph)
    command = [sys.executable, "-m", "blip", "k8s", "render"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)

    done = run("pretrain@unfiltered", "--nodes", "2", "--gpus", "8")
    assert done.returncode == 0, done.stderr
    service, job = yaml.safe_load_all(done.stdout)
    assert service["kind"] == "Service"
    assert job["metadata"]["annotations"][manifests.STAGE] == "pretrain@unfiltered"
    assert pod_of(job)["containers"][0]["workingDir"] == "/workspace"
    done = run("pretrain")
    assert done.returncode == 2
    assert "called 'pretrain'; did you mean pretrain@" in done.stderr
    done = run("caption", "--cluster", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "none.yaml: cannot be read" in done.stderr
