"""An HTTP proxy on loopback that cuts, delays, truncates, corrupts and refuses, as it is told."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one answer; ``after`` counts bytes of its body."""

    cut_after: int | None = None  # the connection is dropped
    corrupt_at: int | None = None  # one bit of this byte is flipped
    delay_s: float = 0.0  # before the answer
    status: int | None = None  # in place of the answer


# Method, path and the request's headers to a fault, or None.
Plan = Callable[[str, str, Any], "Fault | None"]


@dataclass
class Proxy:
    """One running proxy; ``plan`` may be changed while it runs."""

    port: int
    upstream: tuple[str, int]
    plan: Plan = lambda method, path, headers: None
    # (method, path, range header) of every request, and the bytes of bodies passed on
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    body_bytes: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    """Passes a request on, with its fault."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _pass(self) -> None:
        proxy = self.proxy
        proxy.seen.append((self.command, self.path, self.headers.get("Range")))
        fault = proxy.plan(self.command, self.path, self.headers) or Fault()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(fault.delay_s)
        if fault.status is not None:
            self.send_response(fault.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(*proxy.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, body or None, dict(self.headers))
            answer = upstream.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            content = answer.read() if self.command != "HEAD" else b""
            if answer.getheader("Content-Length") is None:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if fault.corrupt_at is not None and fault.corrupt_at < len(content):
                content = bytearray(content)
                content[fault.corrupt_at] ^= 1
            if fault.cut_after is not None:
                content = content[: fault.cut_after]
                self.close_connection = True
            self.wfile.write(content)
            if self.command == "GET":
                proxy.body_bytes += len(content)
        except OSError:
            self.close_connection = True
        finally:
            upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Tests look at ``seen``."""


class Server(ThreadingHTTPServer):
    """Clients that hang up early are the subject of tests, not news."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """A server on loopback in a thread of its own; its port."""
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def faulty_proxy(host: str, port: int) -> Iterator[Proxy]:
    """A proxy before a server."""
    proxy = Proxy(port=0, upstream=(host, port))
    with serving(type("BoundHandler", (Handler,), {"proxy": proxy})) as proxy.port:
        yield proxy
