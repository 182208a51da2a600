"""As much of S3 as a download needs, as fast as Python can: HEAD, GET with ranges, sendfile.

moto would read the whole object for every range, and so measure itself; both sides of the benchmark use this.
"""

from __future__ import annotations

import os
import re
import socketserver
import sys
from pathlib import Path

RANGE = re.compile(rb"range: bytes=(\d+)-(\d*)", re.IGNORECASE)
ETAG = b'"0123456789abcdef0123456789abcdef-2"'
MODIFIED = b"Mon, 23 Nov 2026 00:00:00 GMT"


class Handler(socketserver.StreamRequestHandler):
    """Requests on one connection, one after the other; every path is the one file."""

    file: Path

    def handle(self) -> None:
        with self.file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            while head := self._head():
                self._answer(head, source.fileno(), size)

    def _head(self) -> bytes:
        lines = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            lines.append(line)
        return b"".join(lines)

    def _answer(self, head: bytes, source: int, size: int) -> None:
        found = RANGE.search(head)
        start, end = 0, size
        status = b"200 OK"
        place = b""
        if found:
            start, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
            status = b"206 Partial Content"
            place = b"Content-Range: bytes %d-%d/%d\r\n" % (start, end - 1, size)
        self.wfile.write(
            b"HTTP/1.1 %s\r\nETag: %s\r\nLast-Modified: %s\r\nAccept-Ranges: bytes\r\n"
            b"Content-Type: binary/octet-stream\r\nContent-Length: %d\r\n%s\r\n"
            % (status, ETAG, MODIFIED, end - start, place)
        )
        if head.startswith(b"HEAD"):
            return
        while start < end:
            start += os.sendfile(self.connection.fileno(), source, start, end - start)


class Server(socketserver.ThreadingTCPServer):
    """One thread a connection."""

    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


def main() -> None:
    """``python -m tests.bench.object_server PORT FILE``"""
    handler = type("BoundHandler", (Handler,), {"file": Path(sys.argv[2])})
    with Server(("127.0.0.1", int(sys.argv[1])), handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
