"""Ports for servers that must be told theirs before they start."""

import contextlib
import os
import secrets
import socket


def free_port() -> int:
    """Give a port of the loopback that nobody else takes before the server does.

    The system hands out those from 32768 on, also to others while our server starts; and every worker of
    pytest-xdist draws from ports of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 20_000 + 8 * secrets.randbelow(1_250) + worker % 8
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
