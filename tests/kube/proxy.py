"""A way to a server that can be cut, and opened again."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Proxy:
    """Passes connections on to a port of this machine, while it is open."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open = True
        self._pairs: list[socket.socket] = []
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop all connections and take no new ones."""
        self._open = False
        for end in self._pairs:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def mend(self) -> None:
        """Take connections again."""
        self._open = True

    def close(self) -> None:
        """Be gone for good."""
        self.cut()
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._socket.accept()
                if not self._open:
                    ours.close()
                    continue
                theirs = socket.create_connection(("127.0.0.1", self._target))
                self._pairs += [ours, theirs]
                for source, sink in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """Have a proxy for a while."""
    way = Proxy(target)
    try:
        yield way
    finally:
        way.close()
