"""A first look at the bytes of a request, much cheaper than parsing it: who asks, for which model."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from inference.gateway.headers import SANE_ID
from inference.gateway.plan import Endpoint

_START = re.compile(rb"POST /v1/(completions|chat/completions) HTTP/1\.1\r\n")
_ENDPOINTS: dict[bytes, Endpoint] = {b"completions": "completions", b"chat/completions": "chat.completions"}
_HEAD_END = b"\r\n\r\n"
# With one of these, or without keep-alive, a request is more than its head and a body of known length.
_UNCOMMON = (b"transfer-encoding", b"expect", b"upgrade", b"connection", b"content-encoding")


class _Body(msgspec.Struct):
    model: str


_body = msgspec.json.Decoder(_Body)


class Glimpse(NamedTuple):
    """A whole generation request as it seems; ``request_id`` is the client's own, or empty."""

    endpoint: Endpoint
    raw_key: str
    model: str
    request_id: bytes
    body: bytes


def could_be_seen(data: bytes) -> bool:
    """Whether these bytes begin like a request for a completion."""
    return data.startswith((b"POST /v1/completions ", b"POST /v1/chat/completions "))


def glimpse(data: bytes) -> Glimpse | None:
    """What a request says, if it is common and whole: one head, one body of its content-length, nothing after it.

    None proves nothing: whoever wants to know parses it properly.
    """
    start, end = _START.match(data), data.find(_HEAD_END)
    if start is None or end < 0:
        return None
    headers: dict[bytes, bytes] = {}
    lines = data[start.end() : end].split(b"\r\n")
    for line in lines:
        name, _, value = line.partition(b":")
        if name != name.strip():
            return None
        headers[name.lower()] = value.strip()
    is_plain = len(headers) == len(lines) == data.count(b"\n", 0, end)
    if not is_plain or not _is_common(headers):
        return None
    body = data[end + len(_HEAD_END) :]
    scheme, _, raw_key = headers.get(b"authorization", b"").partition(b" ")
    if headers.get(b"content-length") != b"%d" % len(body) or scheme.lower() != b"bearer":
        return None
    try:
        model = _body.decode(body).model
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    given = headers.get(b"x-request-id", b"")
    return Glimpse(
        _ENDPOINTS[start[1]],
        raw_key.strip().decode("latin-1"),
        model,
        given if SANE_ID.fullmatch(given) else b"",
        body,
    )


def _is_common(headers: dict[bytes, bytes]) -> bool:
    for name in _UNCOMMON:
        if name in headers and headers[name].lower() != b"keep-alive":
            return False
    return b"json" in headers.get(b"content-type", b"json")
