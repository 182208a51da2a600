"""An OpenAI-compatible backend that answers at once, for measuring the proxies in front of it.

``python -m tests.bench.instant_backend PORT``. Every answer is a prepared byte string: 64 chunks when
streamed, all 64 tokens in one JSON body otherwise.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any, cast

import uvloop

TOKENS = 64
MODEL = "instant"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')
_USAGE = {"prompt_tokens": 8, "completion_tokens": TOKENS, "total_tokens": 8 + TOKENS}
_ENVELOPE = {"id": "chatcmpl-instant", "created": 1700000000, "model": MODEL}


def _json_answer(body: dict[str, Any]) -> bytes:
    payload = json.dumps(body, separators=(",", ":")).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


def _event(data: str) -> bytes:
    payload = f"data: {data}\n\n".encode()
    return f"{len(payload):x}\r\n".encode() + payload + b"\r\n"


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event(
        json.dumps(
            _ENVELOPE | {"object": "chat.completion.chunk", "choices": [choice]}, separators=(",", ":")
        )
    )


def _stream_answer(with_usage: bool) -> bytes:
    usage = _ENVELOPE | {"object": "chat.completion.chunk", "choices": [], "usage": _USAGE}
    parts = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        _chunk({"role": "assistant", "content": ""}),
        *(_chunk({"content": f" token{number}"}) for number in range(TOKENS)),
        _chunk({}, "length"),
    ]
    if with_usage:
        parts.append(_event(json.dumps(usage, separators=(",", ":"))))
    return b"".join([*parts, _event("[DONE]"), b"0\r\n\r\n"])


_MESSAGE = {"role": "assistant", "content": "".join(f" token{number}" for number in range(TOKENS))}
WHOLE = _json_answer(
    _ENVELOPE
    | {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": _MESSAGE, "logprobs": None, "finish_reason": "length"}],
        "usage": _USAGE,
    }
)
STREAM = {with_usage: _stream_answer(with_usage) for with_usage in (False, True)}
MODELS = _json_answer({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]})


class Backend(asyncio.Protocol):
    """One connection; takes requests one after another, pipelined or not."""

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (head_end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self.buffer, 0, head_end + 2)
            end = head_end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < end:
                return
            request, self.buffer = self.buffer[:end], self.buffer[end:]
            self.transport.write(self._answer(request, head_end))

    def _answer(self, request: bytes, head_end: int) -> bytes:
        if request.startswith(b"GET "):
            return MODELS
        if _STREAM.search(request, head_end):
            return STREAM[b'"include_usage"' in request]
        return WHOLE


async def serve(port: int) -> None:
    """Serve on localhost until the process is told to stop."""
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
