"""A web server on the loopback that behaves as badly as it is told: for tests of downloads."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Site:
    """What the server gives, and how it misbehaves.

    Attributes:
        files: Content by path.
        etag: Of all files; None for none.
        ranges: Whether it gives parts.
        orders: What it does to the next requests, one each: a status code, a content type,
            `cut N` (breaks off after N bytes) or `hang`. What is not ordered is answered well.
        pause: Seconds between pieces of a thousand bytes.
        log: The Range header of each request, or an empty text.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"one"'
    ranges: bool = True
    orders: list[str] = field(default_factory=list)
    pause: float = 0.0
    log: list[str] = field(default_factory=list)
    address: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        site.log.append(self.headers.get("Range", ""))
        order = site.orders.pop(0) if site.orders else ""
        content = site.files.get(self.path)
        if order == "hang":
            time.sleep(0.5)
        if order.isdigit() or content is None:
            self.send_response(int(order) if order.isdigit() else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self._start(content)
        if start is None:
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Type", order if "/" in order else "application/octet-stream")
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        stop = int(order.removeprefix("cut ")) if order.startswith("cut") else len(content)
        self._send(content[start:stop])
        if stop < len(content):
            self.close_connection = True

    def _start(self, content: bytes) -> int | None:
        asked, site = self.headers.get("Range", ""), self.site
        if not (site.ranges and asked) or self.headers.get("If-Range", site.etag) != site.etag:
            return 0
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start < len(content):
            return start
        self.send_response(416)
        self.send_header("Content-Range", f"bytes */{len(content)}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _send(self, content: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if not self.site.pause:
                self.wfile.write(content)
                return
            for at in range(0, len(content), 1000):
                self.wfile.write(content[at : at + 1000])
                time.sleep(self.site.pause)


@contextlib.contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Serve a site while the body runs."""
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
