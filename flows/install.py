"""Brings a Prefect server to what the project needs: work pools, a limit, an automation, deployments.

Everything is found again by its name, so that installing twice changes nothing, and installing another version of
the project brings the server to that version.
"""

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from blip.errors import IntegrationError
from blip.files import read_json
from blip.integrations.cluster.settings import Cluster, SharedStorage, load_cluster
from flows.turns import limit_name

PROCESSES, KUBERNETES = "blip", "blip-kubernetes"
TEMPLATE = Path("k8s/job-template.json")

ZOMBIES = "blip: flow runs that fell silent have crashed"
PATIENCE = 300.0  # seconds that a server may take to start
SILENCE = timedelta(seconds=150)  # five heartbeats, of which the deployments send one in 30 s
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut", "Cached")
WAITS = ("Scheduled", "AwaitingRetry", "AwaitingConcurrencySlot", "Paused", "Suspended", "Late")


def install(silence: timedelta = SILENCE) -> None:
    """Install everything on the server of PREFECT_API_URL, for the project in the current directory.

    Args:
        silence: How long a flow run may send nothing before it counts as crashed.

    Raises:
        BlipError: There is no server, `jobs.yaml` or the job template does not pass, or a deployment is refused.
    """
    cluster = load_cluster()
    url = get_current_settings().api.url
    if url is None:
        raise IntegrationError("there is no Prefect server to install on: set PREFECT_API_URL")
    with get_client(sync_client=True) as client:
        _await(client, url)
        _install_pool(client, PROCESSES, "process", None)
        _install_pool(client, KUBERNETES, "kubernetes", job_template(cluster))
        client.upsert_global_concurrency_limit_by_name(limit_name(cluster), 1)
        _install_automation(client, crash_of_silent_runs(silence))
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    result = subprocess.run(deploy, capture_output=True, text=True, check=False)
    if result.returncode:
        raise IntegrationError(f"prefect deploy --all: {(result.stderr or result.stdout).strip()}")


def job_template(cluster: Cluster) -> dict[str, Any]:
    """Give the base job template of flow runs, with the defaults of this cluster.

    Raises:
        DataError: The template cannot be read.
    """
    template: dict[str, Any] = read_json(TEMPLATE)
    variables = template["variables"]["properties"]
    defaults: dict[str, Any] = {
        "namespace": cluster.namespace,
        "image": cluster.image,
        "image_pull_policy": cluster.image_pull_policy,
        "env": {**variables["env"]["default"], **cluster.env},
        "env_from": [{"secretRef": {"name": name}} for name in cluster.env_from],
    }
    if isinstance(cluster.storage, SharedStorage):
        defaults["workspace_claim"] = cluster.storage.claim
        defaults["workspace_mount"] = cluster.storage.mount
    for name, value in defaults.items():
        variables[name]["default"] = value
    return template


def crash_of_silent_runs(silence: timedelta) -> AutomationCore:
    """Give the automation that marks a flow run crashed whose process and worker both died.

    A run that ended, or that waits to begin again, sends no heartbeats and needs none.
    """
    states = {f"prefect.flow-run.{state}" for state in (*ENDS, *WAITS)}
    return AutomationCore(
        name=ZOMBIES,
        description="Its process is gone, and nothing was left to say so",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *states},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                force=False,
                message=f"no heartbeat for {silence.total_seconds():.0f} s: its process is gone",
            )
        ],
    )


def _await(client: SyncPrefectClient, url: str) -> None:
    """Give a server that starts with us its time.

    Raises:
        IntegrationError: It does not answer.
    """
    deadline = time.monotonic() + PATIENCE
    told = False
    while problem := client.api_healthcheck():
        if time.monotonic() > deadline:
            raise IntegrationError(f"the Prefect server at {url} does not answer: {problem}")
        if not told:
            sys.stderr.write(f"waiting for the Prefect server at {url}\n")
        told = True
        time.sleep(1.0)


def _install_pool(
    client: SyncPrefectClient, name: str, kind: str, template: dict[str, Any] | None
) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind))
    if template is not None:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def _install_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    found = client.read_automations_by_name(automation.name)
    if not found:
        client.create_automation(automation)
        return
    client.update_automation(found[0].id, automation)
    for twin in found[1:]:
        client.delete_automation(twin.id)
