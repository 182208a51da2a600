"""A real daphne, the official client, and raw sockets that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import redis as redis_sync
import websockets
from channels_redis.pubsub import RedisPubSubChannelLayer

from inference.gateway.usage import USAGE_STREAM
from inference.protocol import DELTA, DONE
from tests.integration.gateway.conftest import KEY
from tests.integration.gateway.fake_engine import FakeEngine, usage, words
from tests.integration.gateway.waiting import until

ROOT = Path(__file__).parents[3]
CHAT = {"model": "acme/echo", "messages": [{"role": "user", "content": "say"}]}


@pytest.fixture
async def daphne(redis_url: str) -> AsyncIterator[int]:
    """The port of a daphne that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(  # noqa: ASYNC220
        [
            Path(sys.executable).with_name("daphne"),
            *("-b", "127.0.0.1", "-p", str(port), "-v", "0"),
            "tests.integration.gateway.daphne_app:application",
        ],
        cwd=ROOT,
        env=os.environ | {"REDIS_URL": redis_url},
    )
    try:
        async with asyncio.timeout(60):
            while b" 200 " not in await exchange(port, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"):
                assert process.poll() is None
                await asyncio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisPubSubChannelLayer]:
    found = RedisPubSubChannelLayer(hosts=[redis_url])
    yield found
    await found.flush()


async def exchange(port: int, request: bytes) -> bytes:
    """The first bytes of the answer; nothing if nobody listens yet."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return b""
    try:
        writer.write(request)
        return await reader.read(65536)
    finally:
        writer.close()


def post(path: str, body: bytes, *more: str) -> bytes:
    head = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {KEY}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def envelope(answer: bytes) -> dict[str, Any]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


async def test_the_official_client_streams_and_completes(daphne, layer, redis_url):
    async with (
        FakeEngine(redis_url, layer, script=words("Hello", " you")),
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{daphne}/v1", api_key=KEY, max_retries=2) as client,
    ):
        whole = await client.chat.completions.create(**CHAT)
        assert whole.choices[0].message.content == "Hello you"
        stream = await client.chat.completions.create(
            **CHAT, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = await client.completions.create(model="acme/echo@stable", prompt="say", logprobs=None)
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(**{**CHAT, "model": "acme/ecco"})
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(
                **CHAT, tools=[{"type": "function", "function": {"name": "f"}}]
            )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello you"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 2
    assert text.choices[0].text == "Hello you"
    assert "acme/echo" in missing.value.message
    assert wrong.value.param == "tools"


async def test_a_model_id_with_a_slash_may_be_escaped_in_the_path(daphne, layer, redis_url):
    body = json.dumps({"prompt": "say"}).encode()
    async with FakeEngine(redis_url, layer, script=words("yes")):
        for path in ("/v1/models/acme%2Fecho/predict", "/v1/models/acme/echo@1/predict"):
            answer = await exchange(daphne, post(path, body))
            assert b'"text":"yes"' in answer


async def test_a_url_that_is_too_long_is_answered(daphne):
    answer = await exchange(daphne, post("/v1/completions?x=" + "y" * 20_000, b"{}"))
    assert answer.startswith(b"HTTP/1.1 414 ")
    assert envelope(answer)["code"] == "uri_too_long"


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(daphne):
    answer = await exchange(
        daphne, post("/v1/completions", b"", "X: y").replace(b"Length: 0", b"Length: 99999999")
    )
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert envelope(answer)["code"] == "payload_too_large"


async def test_a_chunked_body_that_grows_too_large_is_refused(daphne):
    head = post("/v1/completions", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    answer = await exchange(daphne, head + chunk * 20)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_what_is_not_http_and_what_daphne_refuses_get_the_envelope(daphne):
    for request in (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/\xff HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ):
        answer = await exchange(daphne, request)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert set(envelope(answer)) == {"message", "type", "param", "code"}


async def test_a_client_that_does_not_read_stops_nobody_and_gets_everything_once_it_reads(
    daphne, layer, redis_url
):
    pieces, piece = 4000, "x" * 4000

    async def flood(engine: FakeEngine, job_id: str, request: Any) -> AsyncIterator[list[Any]]:
        for at in range(pieces):
            yield [DELTA, 0, piece, [at], None, "stop" if at == pieces - 1 else None, None]
        yield [DONE, usage(3, pieces)]

    body = json.dumps({**CHAT, "stream": True}).encode()
    async with FakeEngine(redis_url, layer, script=flood) as engine:
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.connect(("127.0.0.1", daphne))
            lazy.sendall(post("/v1/chat/completions", body))
            await engine.until(lambda: bool(engine.jobs))
            await engine.idle()
            # Another client is served while the lazy one is not reading.
            other = await exchange(daphne, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in other
            lazy.settimeout(20)
            read = await asyncio.to_thread(read_all, lazy)
    assert read.count(b"x") >= pieces * len(piece)
    assert b"data: [DONE]" in read


def read_all(lazy: socket.socket) -> bytes:
    found = bytearray()
    while not found.endswith(b"0\r\n\r\n"):
        found += lazy.recv(1 << 20)
    return bytes(found)


async def test_a_client_that_hangs_up_frees_the_engine_and_is_counted_as_cancelled(daphne, layer, redis_url):
    async def forever(engine: FakeEngine, job_id: str, request: Any) -> AsyncIterator[list[Any]]:
        yield [DELTA, 0, "one", [1], None, None, None]
        await asyncio.Event().wait()

    body = json.dumps({**CHAT, "stream": True}).encode()
    async with FakeEngine(redis_url, layer, script=forever) as engine:
        answer = await exchange(daphne, post("/v1/chat/completions", body))
        assert b" 200 " in answer
        await engine.until(lambda: bool(engine.cancelled))
    client = redis_sync.Redis.from_url(redis_url)
    found = await until(lambda: client.xrange(USAGE_STREAM))
    client.close()
    assert json.loads(found[0][1][b"record"])["outcome"] == "cancelled"


async def test_a_socket_carries_several_requests_at_once(daphne, layer, redis_url):
    async with (
        FakeEngine(redis_url, layer, script=words("Hello", " you")),
        websockets.connect(
            f"ws://127.0.0.1:{daphne}/ws/v1/completions", subprotocols=["mmserve", f"mmserve.bearer.{KEY}"]
        ) as client,
    ):
        for name in ("a", "b"):
            frame = {
                "type": "request",
                "id": name,
                "endpoint": "chat.completions",
                "body": {**CHAT, "stream": True},
            }
            await client.send(json.dumps(frame))
        texts, done = {"a": "", "b": ""}, set()
        async with asyncio.timeout(20):
            while done != {"a", "b"}:
                frame = json.loads(await client.recv())
                if frame["type"] == "done":
                    done.add(frame["id"])
                else:
                    assert frame["type"] == "chunk", frame
                    texts[frame["id"]] += frame["data"]["choices"][0]["delta"].get("content", "")
    assert texts == {"a": "Hello you", "b": "Hello you"}


@pytest.mark.parametrize(("mebibytes", "code"), [(2, 4413), (6, 1009)])
async def test_a_message_that_is_too_large_ends_its_socket_with_a_reason(
    daphne: int, mebibytes: int, code: int
) -> None:
    async with websockets.connect(
        f"ws://127.0.0.1:{daphne}/ws/v1/completions", subprotocols=["mmserve", f"mmserve.bearer.{KEY}"]
    ) as client:
        await client.send("x" * mebibytes * 2**20)
        if code == 4413:
            assert json.loads(await client.recv())["error"]["code"] == "payload_too_large"
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code


async def test_daphne_stops_cleanly_while_it_answers(daphne, layer, redis_url):
    async def forever(engine: FakeEngine, job_id: str, request: Any) -> AsyncIterator[list[Any]]:
        yield [DELTA, 0, "one", [1], None, None, None]
        await asyncio.Event().wait()

    # The fixture ends daphne with this stream open, and demands exit code 0.
    async with FakeEngine(redis_url, layer, script=forever):
        reader, writer = await asyncio.open_connection("127.0.0.1", daphne)
        writer.write(post("/v1/chat/completions", json.dumps({**CHAT, "stream": True}).encode()))
        assert b"one" in await reader.readuntil(b"one")
    writer.close()


async def test_500_clients_that_come_while_the_gateway_is_held_up_are_all_let_in(daphne: int) -> None:
    [gateway] = [one for one in psutil.Process().children() if "daphne_app" in " ".join(one.cmdline())]
    gateway.suspend()
    try:
        clients = await asyncio.to_thread(knock, daphne, 500)
    finally:
        gateway.resume()
    for client in clients:
        assert (await asyncio.to_thread(client.recv, 65536)).startswith(b"HTTP/1.1 200 ")
        client.close()


def knock(port: int, count: int) -> list[socket.socket]:
    """So many clients, each with its request sent before anybody listens."""
    clients = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(count)]
    for client in clients:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    return clients
