"""Many requests of one moment, each on a connection that is open already; every answer is kept with its time."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import uvloop

from tests.bench.load import CONNECT_DEADLINE_S, LoadFailed

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
CONNECTING_AT_ONCE = 100
READ_EVERY = 10


@dataclass(frozen=True, slots=True)
class Shot:
    """One request and its whole answer."""

    status: int
    took_s: float
    retry_after_s: int | None
    body: bytes


class _Connection(asyncio.Protocol):
    """Sends one request, and reads one answer that has a content-length."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.done: asyncio.Future[Shot] = asyncio.get_running_loop().create_future()
        self.read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> None:
        if self.done.done():
            self._begin()
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.read += data
        end = self.read.find(_HEAD_END)
        length = _LENGTH.search(self.read, 0, end + 2) if end >= 0 else None
        if length is None or len(self.read) < end + len(_HEAD_END) + int(length[1]):
            return
        took_s = time.perf_counter() - self.sent
        again = _RETRY_AFTER.search(self.read, 0, end + 2)
        body = self.read[end + len(_HEAD_END) :]
        shot = Shot(int(self.read[9:12]), took_s, int(again[1]) if again else None, body)
        if not self.done.done():
            self.done.set_result(shot)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(LoadFailed(f"a connection was lost unanswered: {exc}"))


async def _fire(url: str, request: bytes, count: int, *, within_s: float, deadline_s: float) -> list[Shot]:
    where = urlsplit(url)
    loop = asyncio.get_running_loop()
    connections: list[_Connection] = []
    while len(connections) < count:
        some = min(CONNECTING_AT_ONCE, count - len(connections))
        opening = [loop.create_connection(_Connection, where.hostname, where.port) for _ in range(some)]
        made = await asyncio.wait_for(asyncio.gather(*opening), CONNECT_DEADLINE_S)
        connections += [protocol for _, protocol in made]
    # The kernel calls a connection open before the server has looked at it: one answer says that it has.
    for connection in connections:
        connection.ask(b"GET /healthz HTTP/1.1\r\nHost: %s\r\n\r\n" % where.netloc.encode())
    await asyncio.wait_for(asyncio.gather(*(one.done for one in connections)), CONNECT_DEADLINE_S)
    try:
        begun = time.perf_counter()
        for number, connection in enumerate(connections):
            ahead_s = begun + within_s * number / count - time.perf_counter()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            connection.ask(request)
            if number % READ_EVERY == 0:
                await asyncio.sleep(0)  # an answer that came is not to wait for the last request
        async with asyncio.timeout(deadline_s):
            return list(await asyncio.gather(*(connection.done for connection in connections)))
    except TimeoutError as late:
        open_still = sum(not connection.done.done() for connection in connections)
        raise LoadFailed(f"{open_still} of {count} unanswered after {deadline_s:.0f} s") from late
    finally:
        for connection in connections:
            connection.transport.abort()


def fire(url: str, request: bytes, count: int, *, within_s: float, deadline_s: float) -> list[Shot]:
    """Send ``count`` requests, evenly within a time (0: all at once); LoadFailed if one gets no answer."""
    return uvloop.run(_fire(url, request, count, within_s=within_s, deadline_s=deadline_s))
