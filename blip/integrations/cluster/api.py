"""A small client of a cluster's API: Jobs, pods, logs and events of one namespace, as plain dicts."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.errors import IntegrationError

Object = dict[str, Any]
"""An object of the cluster, or the manifest of one."""

SECONDS = 20.0  # a call that takes longer has lost its server
SILENCE_SECONDS = 60.0  # after so much of it a log is asked for anew
OK, NOT_FOUND, CONFLICT, TOO_MANY, SERVER = 200, 404, 409, 429, 500


class AwayError(IntegrationError):
    """The cluster does not answer just now; it may again."""


@dataclass(frozen=True)
class Api:
    """What the Jobs of a namespace need of the cluster."""

    namespace: str
    client: Any

    def job(self, name: str) -> Object | None:
        """Give a Job, if there is one of that name."""
        return self._ask("GET", f"jobs/{name}")

    def jobs(self, selector: str) -> list[Object]:
        """Give the Jobs that carry labels, the oldest first."""
        return _by_age(self._ask("GET", "jobs", labelSelector=selector))

    def pods(self, job: str) -> list[Object]:
        """Give the pods of a Job, the oldest first."""
        return _by_age(self._ask("GET", "pods", labelSelector=f"job-name={job}"))

    def create(self, manifest: Object) -> Object | None:
        """Create a Job or a Service; gives None where there is one of that name."""
        return self._ask("POST", f"{manifest['kind'].lower()}s", manifest)

    def patch(self, job: str, change: Object) -> None:
        """Change fields of a Job, if it is still there."""
        self._ask("PATCH", f"jobs/{job}", change)

    def delete(self, job: str) -> None:
        """Delete a Job, if it is still there; it goes when its pods have gone."""
        self._ask("DELETE", f"jobs/{job}", propagationPolicy="Foreground")

    def last_warning(self, pod: str) -> str:
        """Give the cluster's last warning about a pod, e.g. of a volume that it cannot mount."""
        selector = f"involvedObject.name={pod},type=Warning"
        found = (self._ask("GET", "events", fieldSelector=selector) or {}).get("items", [])
        found.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        return f"{found[-1]['reason']}: {' '.join(found[-1]['message'].split())}" if found else ""

    def log(self, pod: str, since: str = "", *, follow: bool = False) -> Iterator[tuple[str, str]]:
        """Read what a pod says, line by line, each with its time.

        Args:
            pod: Its name.
            since: Only what it said after this line's time.
            follow: Wait for more until the pod ends.

        Raises:
            AwayError: The connection dropped: ask again, since the last line.
        """
        query = {"timestamps": "true", "follow": str(follow).lower()}
        if since:
            query["sinceTime"] = since  # which the server cuts to a whole second
        with _answers():
            answer = self._call("GET", f"pods/{pod}/log", None, SILENCE_SECONDS, query)
            with contextlib.closing(answer):
                _refuse(answer.status, answer.data if answer.status >= TOO_MANY else b"")
                if answer.status != OK:  # its container has not begun, or the pod is gone
                    return
                for line in _lines(answer.stream()):
                    time, _, text = line.partition(" ")
                    if _exact(time) > _exact(since):
                        yield time, text

    def _ask(self, method: str, path: str, body: Object | None = None, **query: str) -> Any:
        """Make a call and give its answer; None for what is not there, or is there already."""
        with _answers():
            answer = self._call(method, path, body, SECONDS, query)
            _refuse(answer.status, answer.data)
            if answer.status in (NOT_FOUND, CONFLICT):
                return None
            return json.loads(answer.data)

    def _call(
        self, method: str, path: str, body: Object | None, seconds: float, query: dict[str, str]
    ) -> Any:
        group = "/apis/batch/v1" if path.startswith("jobs") else "/api/v1"
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = self.client.param_serialize(
            method,
            f"{group}/namespaces/{self.namespace}/{path}",
            query_params=list(query.items()),
            header_params={"Accept": "*/*", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        return self.client.call_api(*request, _request_timeout=seconds).response


def connect(namespace: str) -> Api:
    """Give the API of a cluster: that of KUBECONFIG, or of `~/.kube/config`, or of the pod that we run in.

    Raises:
        IntegrationError: None of them is there, or it is not a configuration.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    file = os.environ.get("KUBECONFIG")  # the library reads it once, when it is imported
    try:
        if file or Path("~/.kube/config").expanduser().exists():
            config.load_kube_config(file, client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise IntegrationError(
            f"no cluster to run Jobs on: set KUBECONFIG to a file that names one ({error})"
        ) from None
    return Api(namespace, client.ApiClient(settings))


def annotations(found: Object) -> dict[str, str]:
    """Give the annotations of an object."""
    return dict(found["metadata"].get("annotations") or {})


@contextlib.contextmanager
def _answers() -> Iterator[None]:
    """Give a call that could not be made, or broke off, as an `AwayError`."""
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (HTTPError, OSError) as error:
        raise AwayError(f"the cluster does not answer: {error}") from error


def _refuse(status: int, data: bytes) -> None:
    """Raise for an answer that is neither what was asked for nor `there is` or `there is no such thing`.

    Raises:
        AwayError: The server has troubles of its own.
        IntegrationError: It refuses.
    """
    if status < 400 or status in (NOT_FOUND, CONFLICT):
        return
    try:
        message = json.loads(data)["message"]
    except (ValueError, KeyError, TypeError):
        message = data.decode(errors="replace").strip()
    if status == TOO_MANY or status >= SERVER:
        raise AwayError(f"the cluster does not answer: {message or status}")
    raise IntegrationError(f"the cluster refuses: {message or status}")


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Split a stream into whole lines; a rest without an end comes when the stream ends."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace").rstrip() for line in whole)
    if rest:
        yield rest.decode(errors="replace").rstrip()


def _exact(time: str) -> str:
    """Give a line's time in a form that sorts: its nanoseconds lack their last zeros."""
    return time.removesuffix("Z").ljust(29, "0") if time else ""


def _by_age(answer: Object | None) -> list[Object]:
    found: list[Object] = (answer or {}).get("items", [])
    return sorted(found, key=lambda item: str(item["metadata"]["creationTimestamp"]))
