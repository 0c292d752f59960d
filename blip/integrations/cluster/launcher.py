"""Places the stages of a run on a cluster: each a Job, followed to its end or joined where it runs."""

import contextlib
import threading
from pathlib import Path

from blip.errors import TERMINATED, IntegrationError
from blip.integrations.cluster import jobs, workspace
from blip.integrations.cluster.api import Object, annotations, connect
from blip.integrations.cluster.manifests import AFTER, render, resumed, seen_by_pods
from blip.integrations.cluster.reasons import ending
from blip.integrations.cluster.settings import BucketStorage, Cluster
from blip.integrations.launch import (
    LocalLauncher,
    Say,
    StageFailedError,
    StoppedError,
    stage_environment,
)
from blip.integrations.versioning import Node


class KubernetesLauncher:
    """Runs stages as Jobs.

    A Job is named by its work, so that one that this process, or an earlier one that was killed,
    has begun is joined and not begun again. Data that a generator draws are drawn on this machine:
    what pins them belongs to the workspace.
    """

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        *,
        nodes: int | None = None,
        gpus: int | None = None,
        parts: int | None = None,
    ) -> None:
        """See `render` for what `nodes`, `gpus` and `parts` replace; `folder` is the workspace."""
        self._folder = folder
        self._cluster = cluster
        self._spread = {"nodes": nodes, "gpus": gpus, "parts": parts}
        self._api = connect(cluster.namespace)
        self._here = LocalLauncher(folder, stage_environment(folder))
        self._active: set[str] = set()
        self._stopped = threading.Event()

    def begun(self, node: Node, key: str) -> bool:
        """Tell whether the stage's own Job is under way, or its result is here and not yet recorded."""
        if node.pinned or not key:
            return False
        job = self._api.job(self._manifests(node, key)[-1]["metadata"]["name"])
        if job is None:
            return False
        ended = ending(job, [])
        return ended is None or (ended.code == 0 and self._can_be_taken(job, node))

    def launch(self, node: Node, key: str, say: Say) -> None:
        """Run a stage as its Jobs, one after the other (see `Launcher.launch`)."""
        if node.pinned:
            self._here.launch(node, key, say)
            return
        for job, services in self._prepared(node, key):
            name = job["metadata"]["name"]
            self._active.add(name)
            try:
                self._begin(job, services, node, say)
                ended = jobs.follow(
                    self._api,
                    name,
                    say,
                    patience=self._cluster.patience_seconds,
                    stopped=self._stopped,
                )
                if ended is None:
                    jobs.cancel(self._api, [name])
                    raise StoppedError("was stopped")
            finally:
                self._active.discard(name)
            if ended.code == TERMINATED:
                raise StoppedError(ended.reason, ended.code)
            if ended.code:
                raise StageFailedError(ended.reason, ended.code)
        if isinstance(self._cluster.storage, BucketStorage):
            workspace.bring(node)

    def begin(self, node: Node, key: str, say: Say) -> str:
        """Begin the first Job of a stage that has not ended well, or join it, and give its name."""
        name = ""
        for job, services in self._prepared(node, key):
            name = job["metadata"]["name"]
            if self._begin(job, services, node, say) != "taken":
                break
        return name

    def recorded(self, node: Node, key: str) -> None:
        """Mark the Jobs of a stage, so that the next one who wants the same begins anew."""
        if not node.pinned:
            for manifest in self._manifests(node, key):
                if manifest["kind"] == "Job":
                    jobs.mark_recorded(self._api, manifest["metadata"]["name"])

    def stop(self) -> None:
        """Delete the Jobs under way; who follows them waits for their pods. Safe in a signal handler."""
        self._stopped.set()
        self._here.stop()
        for name in list(self._active):
            with contextlib.suppress(IntegrationError):
                self._api.delete(name)

    def _begin(self, job: Object, services: list[Object], node: Node, say: Say) -> jobs.Begun:
        if self._stopped.is_set():
            raise StoppedError("was not begun")
        name = job["metadata"]["name"]
        how = jobs.submit(
            self._api, job, services, lambda there: self._can_be_taken(there, node), self._stopped
        )
        if how != "started":
            say(f"job {name} of an earlier run {'goes on' if how == 'joined' else 'had ended'}")
        if how == "joined" and AFTER in job["metadata"]["annotations"]:  # applied by hand, it waits
            labels = {"labels": job["metadata"]["labels"]}
            suspend = {} if self._cluster.queue else {"spec": {"suspend": False}}
            self._api.patch(name, {"metadata": labels, **suspend})
        return how

    def _can_be_taken(self, job: Object, node: Node) -> bool:
        """Tell whether the result of a Job that ended well is still there, and nobody has taken it."""
        if jobs.RECORDED in annotations(job):
            return False
        parts = job["metadata"]["name"].endswith("-parts")  # their result is under runs/
        here = not isinstance(self._cluster.storage, BucketStorage) and not parts
        return not here or all((self._folder / out).exists() for out in node.outs)

    def _prepared(self, node: Node, key: str) -> list[tuple[Object, list[Object]]]:
        """Give the stage's Jobs in their order, each with its Services, as they go to the cluster."""
        manifests = self._manifests(node, key)
        services = [manifest for manifest in manifests if manifest["kind"] == "Service"]
        found = [
            resumed(manifest, self._cluster)  # it is begun when its turn has come
            if AFTER in manifest["metadata"].get("annotations", {})
            else manifest
            for manifest in manifests
            if manifest["kind"] == "Job"
        ]
        if isinstance(self._cluster.storage, BucketStorage):
            environment = workspace.share(self._folder, node, key)
            for job in found:
                (container,) = job["spec"]["template"]["spec"]["containers"]
                container["env"] += [{"name": n, "value": v} for n, v in environment.items()]
        return [(job, services) for job in found]

    def _manifests(self, node: Node, key: str) -> list[Object]:
        place = seen_by_pods(self._folder, self._cluster)
        return render(node, key, self._cluster, place, **self._spread)
