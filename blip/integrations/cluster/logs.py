"""What the pods of a Job say, line by line, however often the connection to the cluster drops."""

import threading
import time
from collections.abc import Iterator

from blip.errors import IntegrationError
from blip.integrations.cluster.api import Api, AwayError, Object, annotations
from blip.integrations.launch import Say

RETRY_SECONDS = 0.5
INDEX = "batch.kubernetes.io/job-completion-index"


class Logs:
    """Passes on what pods say as they say it, each read by a thread of its own."""

    def __init__(self, api: Api, say: Say) -> None:
        self._api, self._say = api, say
        self._readers: dict[str, threading.Thread] = {}
        self._ended: set[str] = set()
        self._left = threading.Event()

    def attend(self, pods: list[Object], parallel: bool) -> None:
        """Read pods that have begun, and note those that have ended."""
        for pod in pods:
            name, phase = pod["metadata"]["name"], pod["status"].get("phase")
            if phase in ("Succeeded", "Failed"):
                self._ended.add(name)
            if phase != "Pending" and name not in self._readers:
                prefix = f"[{label(pod)}] " if parallel else ""
                reader = threading.Thread(
                    target=self._read, args=(name, prefix), name=f"log of {name}", daemon=True
                )
                self._readers[name] = reader
                reader.start()

    def leave(self, seconds: float) -> None:
        """Wait, at most so long, for what the pods said last."""
        self._left.set()
        deadline = time.monotonic() + seconds
        for reader in self._readers.values():
            reader.join(max(0.0, deadline - time.monotonic()))

    def _read(self, name: str, prefix: str) -> None:
        since = ""
        whole = False
        while not whole:
            last = name in self._ended or self._left.is_set()
            try:
                for when, line in self._api.log(name, since, follow=not last):
                    since = when
                    if line:
                        self._say(prefix + line)
                whole = last
            except AwayError:
                whole = self._left.is_set()
            except IntegrationError as error:
                self._say(f"{prefix}cannot be read: {error}")
                return
            if not whole:
                self._left.wait(RETRY_SECONDS)


def said(api: Api, job: Object) -> Iterator[str]:
    """Give what the pods of a Job have said so far, pod by pod."""
    for pod in api.pods(job["metadata"]["name"]):
        prefix = f"[{label(pod)}] " if parallel(job) else ""
        for _, line in api.log(pod["metadata"]["name"]):
            yield prefix + line


def label(pod: Object) -> str:
    """Name a pod among those of its Job: by its index, else by the end of its name."""
    name = str(pod["metadata"]["name"])
    return annotations(pod).get(INDEX) or name.rpartition("-")[2]


def parallel(job: Object) -> bool:
    """Tell whether a Job has several pods at once, whose lines and ends must be told apart."""
    return max(job["spec"].get("completions") or 1, job["spec"].get("parallelism") or 1) > 1
