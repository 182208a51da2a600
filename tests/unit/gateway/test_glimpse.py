"""What is seen of a request in its bytes, and what is left to a parser."""

from __future__ import annotations

import pytest

from inference.gateway.glimpse import could_be_seen, glimpse

BODY = b'{"messages": [], "model": "acme/echo", "stream": true}'


def request(body: bytes = BODY, *more: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    head = [
        b"POST %s HTTP/1.1" % path,
        b"Host: x",
        b"AUTHORIZATION: bearer mm-Good",
        b"Content-Type: application/json",
        b"content-length: %d" % len(body),
        *more,
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def test_a_common_request_is_seen_whole():
    seen = glimpse(request(BODY, b"X-Request-Id: mine-1", b"Connection: keep-alive"))

    assert seen is not None
    assert (seen.endpoint, seen.raw_key, seen.model) == ("chat.completions", "mm-Good", "acme/echo")
    assert (seen.request_id, seen.body) == (b"mine-1", BODY)


def test_the_other_endpoint_and_a_strange_request_id():
    seen = glimpse(request(BODY, b"X-Request-Id: <script>", path=b"/v1/completions"))

    assert seen is not None
    assert (seen.endpoint, seen.request_id) == ("completions", b"")


@pytest.mark.parametrize(
    "data",
    [
        request()[:-1],
        request() + b"P",
        request().partition(b"\r\n\r\n")[0],
        request(BODY, b"Connection: close"),
        request(BODY, b"Transfer-Encoding: chunked"),
        request(BODY, b"Expect: 100-continue"),
        request(BODY, b"Upgrade: websocket"),
        request(BODY, b"Content-Encoding: gzip"),
        request(BODY, b"Content-Length: 2"),
        request(BODY, b" folded: line"),
        request(BODY, b"X-A: b\nContent-Length: 2"),
        request(BODY).replace(b"content-length:", b"content-length :"),
        request(BODY).replace(b"bearer ", b"basic "),
        request(BODY).replace(b"application/json", b"text/plain"),
        request(BODY).replace(b"HTTP/1.1", b"HTTP/1.0"),
        request(b"[1]"),
        request(b'{"model": 1}'),
        request(b'{"model": "\xff"}'),
        request(b"{" * 100_000),
        request(path=b"/v1/models"),
        b"",
        b"\x16\x03\x01",
    ],
)
def test_what_is_not_common_or_not_whole_is_left_to_the_parser(data):
    assert glimpse(data) is None


def test_only_requests_for_completions_are_looked_at():
    assert could_be_seen(request())
    assert could_be_seen(request(path=b"/v1/completions"))
    assert not could_be_seen(request(path=b"/v1/models"))
    assert not could_be_seen(b"GET /healthz HTTP/1.1\r\n\r\n")
