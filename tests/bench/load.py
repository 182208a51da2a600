"""A load generator for chat completions: raw HTTP/1.1 keep-alive on asyncio.Protocol.

It shares its cores with what it measures, so an answer's bytes are only collected while they arrive; they are
counted and checked once, when the answer is whole. A wrong answer is kept as an error and fails the run.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PIECE = re.compile(rb'"content": ?"[^"]')
_ANY_CONTENT = re.compile(rb'"content": ?"(?!")')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens": ?(\d+)')
_CACHED_TOKENS = re.compile(rb'"cached_tokens": ?(\d+)')
_ERROR = re.compile(rb'"error": ?\{')
CONNECT_DEADLINE_S = 10.0


class LoadFailed(Exception):
    """The server answered wrongly, or not in time; the message has the first wrong answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to send chat completions, as which model, with which key."""

    url: str
    model: str
    api_key: str = "unused"

    def request(self, prompt: str, *, stream: bool, max_tokens: int, **fields: Any) -> bytes:
        """The whole HTTP request for one chat completion; a stream asks for its usage."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            **fields,
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        payload = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(self.url).netloc}\r\n"
            f"Authorization: Bearer {self.api_key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        return head.encode() + payload


@dataclass(frozen=True, slots=True)
class Answer:
    """One good answer: clock readings (s), chunks that carried text, tokens by the server's own count."""

    sent: float
    first: float
    ended: float
    chunks: int
    tokens: int
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt
    number: int = 0  # of its request, in the order in which they were sent


@dataclass(slots=True)
class Result:
    """The answers of one run that ended inside its window."""

    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    window_s: float = 0.0

    @property
    def answers_per_s(self) -> float:
        return len(self.answers) / self.window_s

    @property
    def chunks_per_s(self) -> float:
        return sum(answer.chunks for answer in self.answers) / self.window_s

    @property
    def tokens_per_s(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.window_s

    @property
    def ttft_p50_s(self) -> float:
        return statistics.median(answer.first - answer.sent for answer in self.answers)

    @property
    def latency_p50_s(self) -> float:
        return statistics.median(answer.ended - answer.sent for answer in self.answers)


class _Run:
    """Keeps every connection busy until the count or the time is up; owns the result."""

    def __init__(self, requests: Iterator[bytes], stream: bool, total: int | None, until: float) -> None:
        self.requests = requests
        self.stream = stream
        self.left = total
        self.until = until
        self.result = Result()
        self.sent = 0
        self.open = 0
        self.idle = asyncio.get_running_loop().create_future()

    def next_request(self) -> bytes | None:
        """What to send next; None when there is nothing left to ask."""
        if self.result.errors or time.perf_counter() >= self.until:
            return None
        if self.left is not None:
            if self.left == 0:
                return None
            self.left -= 1
        self.sent += 1
        return next(self.requests)

    def fail(self, problem: str) -> None:
        self.result.errors.append(problem[:500])

    def left_one(self) -> None:
        """A connection has closed; the run ends with the last one."""
        self.open -= 1
        if self.open == 0 and not self.idle.done():
            self.idle.set_result(None)


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.parts: list[bytes] = []
        self.asking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.run.open += 1

    def ask(self) -> None:
        """Send the next request, or close when the run is over."""
        request = self.run.next_request()
        if request is None:
            self.asking = False
            self.transport.close()
            return
        self.parts.clear()
        self.size = 0
        self.needed: int | None = None
        self.head_size = 0
        self.first = 0.0
        self.asking = True
        self.number = self.run.sent - 1
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parts.append(data)
        self.size += len(data)
        if not self.head_size and not self._read_head():
            return
        if not self.first and _PIECE.search(data):
            self.first = time.perf_counter()
        if self.needed is not None:
            if self.size >= self.needed:
                self._finish()
        elif data.endswith(_LAST_CHUNK) or (len(data) < len(_LAST_CHUNK) and self._ends_in_this_tail()):
            self._finish()

    def _read_head(self) -> bool:
        whole = b"".join(self.parts)
        end = whole.find(_HEAD_END)
        if end < 0:
            return False
        self.head_size = end + len(_HEAD_END)
        self.status = whole[9:12]
        length = _LENGTH.search(whole, 0, self.head_size)
        if length:
            self.needed = self.head_size + int(length[1])
        return True

    def _ends_in_this_tail(self) -> bool:
        return b"".join(self.parts[-len(_LAST_CHUNK) :]).endswith(_LAST_CHUNK)

    def _finish(self) -> None:
        ended = time.perf_counter()
        whole = b"".join(self.parts)
        body = whole[self.head_size :]
        if self.needed is None:
            body = dechunked(body)
        problem = wrong(self.status, body, self.run.stream)
        if problem:
            self.run.fail(problem)
        else:
            tokens = _COMPLETION_TOKENS.findall(body)
            chunks = len(_ANY_CONTENT.findall(body))
            prompt, cached = (_last(found.findall(body)) for found in (_PROMPT_TOKENS, _CACHED_TOKENS))
            answer = Answer(
                self.sent, self.first, ended, chunks, int(tokens[-1]), prompt, cached, self.number
            )
            self.run.result.answers.append(answer)
        self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.asking:
            self.run.fail(f"connection lost in the middle of an answer: {exc}")
        self.run.left_one()


def _last(found: list[bytes]) -> int:
    return int(found[-1]) if found else 0


def dechunked(body: bytes) -> bytes:
    """The payload of a body in HTTP/1.1 chunks."""
    payload: list[bytes] = []
    at = 0
    while True:
        line_end = body.index(b"\r\n", at)
        size = int(body[at:line_end], 16)
        if not size:
            return b"".join(payload)
        payload.append(body[line_end + 2 : line_end + 2 + size])
        at = line_end + 4 + size


def wrong(status: bytes, body: bytes, stream: bool) -> str:
    """What is wrong with an answer; an empty string if nothing is."""
    if status != b"200":
        return f"HTTP {status.decode()}: {body.decode(errors='replace')}"
    if _ERROR.search(body):
        return f"an error in an answer: {body.decode(errors='replace')[-500:]}"
    if stream and not body.rstrip().endswith(b"data: [DONE]"):
        return f"a stream without its end: {body.decode(errors='replace')[-500:]}"
    if not _PIECE.search(body) or not _COMPLETION_TOKENS.search(body):
        return f"an answer without text or usage: {body.decode(errors='replace')[-500:]}"
    return ""


async def generate(
    url: str,
    requests: Iterator[bytes],
    *,
    stream: bool,
    connections: int,
    total: int | None = None,
    duration_s: float | None = None,
    deadline_s: float = 300.0,
) -> Result:
    """Send ``total`` requests, or as many as fit ``duration_s``, always one a connection; raises LoadFailed.

    With ``total`` equal to ``connections`` it is one burst. Answers that end after ``duration_s`` are
    checked, but not counted.
    """
    where = urlsplit(url)
    host, port = where.hostname or "127.0.0.1", where.port or 80
    loop = asyncio.get_running_loop()
    run = _Run(requests, stream, total, float("inf"))
    made = []
    for _ in range(connections):
        opening = loop.create_connection(lambda: _Connection(run), host, port)
        made.append((await asyncio.wait_for(opening, CONNECT_DEADLINE_S))[1])
    started = time.perf_counter()
    if duration_s is not None:
        run.until = started + duration_s
    for connection in made:
        connection.ask()
    try:
        await asyncio.wait_for(run.idle, deadline_s)
    except TimeoutError as late:
        raise LoadFailed(f"{run.open} of {connections} connections unanswered after {deadline_s} s") from late
    finally:
        for connection in made:
            connection.transport.abort()
    result = run.result
    if result.errors:
        raise LoadFailed(f"{len(result.errors)} wrong answers; the first: {result.errors[0]}")
    if duration_s is not None:
        result.answers = [answer for answer in result.answers if answer.ended <= run.until]
    if not result.answers:
        raise LoadFailed("no answer ended in time")
    result.window_s = duration_s or max(answer.ended for answer in result.answers) - started
    return result


def run(load: Coroutine[Any, Any, Result]) -> Result:
    """Run one load on an event loop of its own, with uvloop."""
    return uvloop.run(load)
