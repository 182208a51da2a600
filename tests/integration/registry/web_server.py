"""A web server on loopback: ranges, ETags, redirects, and lies when told to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.faulty import serving

RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Site:
    """What it serves by path; ``redirects`` by path to a URL."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    weak: bool = False  # ETags that promise nothing
    before: Callable[[str], None] = lambda path: None
    # path, headers
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    """GET alone."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site, path = self.site, self.path.partition("?")[0]
        site.seen.append((self.path, dict(self.headers)))
        if path in site.redirects:
            self._answer(302, b"", {"Location": site.redirects[path]})
            return
        content = site.files.get(path)
        if content is None:
            self._answer(404, b"", {})
            return
        site.before(path)
        content = site.files[path]
        etag = ("W/" if site.weak else "") + f'"{hashlib.sha256(content).hexdigest()[:12]}"'
        wanted = RANGE.fullmatch(self.headers.get("Range", ""))
        fresh = self.headers.get("If-Range", etag) == etag
        if wanted and site.ranges and fresh and content:
            start, end = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            place = f"bytes {start}-{end}/{len(content)}"
            self._answer(206, content[start : end + 1], {"ETag": etag, "Content-Range": place})
        else:
            self._answer(200, content, {"ETag": etag})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(content)
        except OSError:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Tests look at ``seen``."""


@contextmanager
def web_server() -> Iterator[Site]:
    """A running site."""
    site = Site()
    with serving(type("BoundHandler", (Handler,), {"site": site})) as site.port:
        yield site
