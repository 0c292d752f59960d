"""What a pod of the tests gets on its way into the cluster, by a real mutating webhook.

The cluster's image holds Python alone and its control plane may be older than Indexed Jobs. So each pod of a
namespace that asks for it gets this machine's packages and this checkout's code as read-only folders, as if they were
in its image, and a pod of a Job over parts gets the index that a newer control plane would give it.
"""

import base64
import contextlib
import datetime
import ipaddress
import itertools
import json
import ssl
import sysconfig
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).parents[2]
IMAGE = "docker.io/library/python:3.11-slim"
INDEX = "batch.kubernetes.io/job-completion-index"
LABEL = "blip-test"
ENVIRONMENT = {
    "PATH": "/opt/blip/bin:/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": "/opt/blip/site:/opt/blip/code",
}


def programs(folder: Path) -> Path:
    """Write the commands that an image would have into a folder."""
    folder.mkdir()
    for name, command in (("blip", "python3 -m blip"), ("python", "python3")):
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        file.chmod(0o755)
    return folder


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[dict[str, Any]]:
    """Serve the webhook on loopback; yields its configuration, for namespaces with the label of the folder's name."""
    key, certificate = _certificate(folder)
    mounted = {
        "site": sysconfig.get_paths()["purelib"],
        "code": str(ROOT),
        "bin": str(programs(folder / "bin")),
    }
    counters: dict[str, Iterator[int]] = defaultdict(itertools.count)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            patch = json.dumps(_patch(review["request"]["object"], mounted, counters)).encode()
            response = {"uid": review["request"]["uid"], "allowed": True, "patchType": "JSONPatch"}
            response["patch"] = base64.b64encode(patch).decode()
            body = json.dumps({**review, "request": None, "response": response}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield _configuration(folder.name, server.server_address[1], certificate.read_bytes())
    finally:
        server.shutdown()
        server.server_close()


def _configuration(name: str, port: int, certificate: bytes) -> dict[str, Any]:
    webhook = {
        "name": f"{name}.blip.test",
        "clientConfig": {
            "url": f"https://127.0.0.1:{port}/",
            "caBundle": base64.b64encode(certificate).decode(),
        },
        "rules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
        ],
        "namespaceSelector": {"matchLabels": {LABEL: name}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }  # fmt: skip
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [webhook],
    }


def _patch(
    pod: dict[str, Any], mounted: dict[str, str], counters: dict[str, Iterator[int]]
) -> list[dict[str, Any]]:
    metadata, spec = pod["metadata"], pod["spec"]
    container = spec["containers"][0]
    for name, folder in mounted.items():
        spec["volumes"].append({"name": f"host-{name}", "hostPath": {"path": folder}})
        mount = {"name": f"host-{name}", "mountPath": f"/opt/blip/{name}", "readOnly": True}
        container["volumeMounts"].append(mount)
    job = metadata["labels"]["job-name"]
    if job.endswith("-parts"):
        index = str(next(counters[job]))
        metadata.setdefault("annotations", {})[INDEX] = index
        container["env"].append({"name": "JOB_COMPLETION_INDEX", "value": index})
    return [
        {"op": "replace", "path": "/spec", "value": spec},
        {"op": "add", "path": "/metadata/annotations", "value": metadata.get("annotations", {})},
    ]


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "key.pem", folder / "certificate.pem"
    files[0].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    files[1].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return files
