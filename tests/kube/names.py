"""The DNS of the test cluster, which has none: a service's name gives the address of its pod.

A cluster's own gives the service's address, behind which its nodes find a pod that is ready. The test cluster's node
does not, and our servers listen where their services do.
"""

import contextlib
import ipaddress
import socketserver
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from kubernetes import client, config

DOMAIN = ["svc", "cluster", "local"]
A, INTERNET = 1, 1
NO_SUCH_NAME = 3
ANSWER, OWN, RECURSES = 0x8000, 0x0400, 0x0080  # flags of an answer
ASKED_TO_RECURSE = 0x0100
HEADER = struct.Struct("!6H")  # id, flags; how many questions, answers, authorities, extras
RECORD = struct.Struct("!HHHIH4s")  # name, type, class, seconds that it holds, length, address
NAME_ASKED = 0xC000 | HEADER.size  # where in the message it stands


class Names:
    """Looks services up by their endpoints."""

    def __init__(self, kubeconfig: Path) -> None:
        settings = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=settings)
        self._api = client.CoreV1Api(client.ApiClient(settings))

    def addresses(self, service: str, namespace: str) -> list[str]:
        """Give the addresses of a service's pods that are ready, or else of those that are not yet."""
        try:
            found = self._api.read_namespaced_endpoints(service, namespace)
        except client.ApiException as error:
            if error.status == 404:
                return []
            raise
        subsets = found.subsets or []
        ready = [each.ip for subset in subsets for each in subset.addresses or []]
        return ready or [each.ip for subset in subsets for each in subset.not_ready_addresses or []]

    @contextlib.contextmanager
    def serve(self, address: str) -> Iterator[None]:
        """Answer the pods' questions at an address of this machine, port 53."""
        names = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                query, socket = self.request
                socket.sendto(names.answer(query), self.client_address)

        with socketserver.ThreadingUDPServer((address, 53), Handler) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield
            finally:
                server.shutdown()

    def answer(self, query: bytes) -> bytes:
        """Give the message that answers another (RFC 1035, section 4)."""
        number, flags, *_ = HEADER.unpack_from(query)
        end = query.index(b"\0", HEADER.size) + 1
        kind, _ = struct.unpack_from("!2H", query, end)
        labels = _labels(query[HEADER.size : end])
        known = len(labels) == 5 and labels[2:] == DOMAIN
        found = self.addresses(labels[0], labels[1]) if known else []
        records = [
            RECORD.pack(NAME_ASKED, A, INTERNET, 1, 4, ipaddress.IPv4Address(each).packed)
            for each in (found if kind == A else [])  # of another kind the name has none
        ]
        flags = ANSWER | OWN | RECURSES | flags & ASKED_TO_RECURSE | (0 if found else NO_SUCH_NAME)
        header = HEADER.pack(number, flags, 1, len(records), 0, 0)
        return header + query[HEADER.size : end + 4] + b"".join(records)


def _labels(name: bytes) -> list[str]:
    """Take a name apart: each label has its length before it."""
    labels = []
    while name[0]:
        labels.append(name[1 : name[0] + 1].decode().lower())
        name = name[name[0] + 1 :]
    return labels
