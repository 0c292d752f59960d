"""A real S3 server on loopback that serves a folder: its folders are buckets."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve a folder with `rclone serve s3`, on a free port if none is named; give the address."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "rclone"), "serve", "s3", "--config", os.devnull]
    # Callers change the folder, too. With 0 the server never comes out of its own clean-up under many writers.
    command += [
        "--auth-key",
        "key,secret",
        "--addr",
        f"127.0.0.1:{port}",
        "--dir-cache-time",
        "10ms",
    ]
    server = subprocess.Popen([*command, str(folder)], stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def environment(address: str) -> dict[str, str]:
    """Give the variables by which a program finds the server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
