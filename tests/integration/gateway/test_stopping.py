"""A daphne that is told to stop lets its requests finish, and gives those that it cuts a legal end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis as redis_sync
import websockets
from channels_redis.pubsub import RedisPubSubChannelLayer

from inference.gateway.usage import USAGE_STREAM
from routing.core.records import UsageRecord
from tests.integration.gateway.conftest import KEY
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.waiting import LOOK_S, until

ROOT = Path(__file__).parents[3]
BODY = {"model": "acme/echo", "prompt": "say"}
HEADERS = {"Authorization": f"Bearer {KEY}"}
FOR_EVER_S, SOON_S = 600.0, 3.0


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisPubSubChannelLayer]:
    found = RedisPubSubChannelLayer(hosts=[redis_url])
    yield found
    await found.flush()


class Daphne:
    """A gateway in a process of its own, and clients of it."""

    def __init__(self, redis_url: str, drain_s: float) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [
                Path(sys.executable).with_name("daphne"),
                *("-b", "127.0.0.1", "-p", str(self.port), "-v", "0"),
                "tests.integration.gateway.daphne_app:application",
            ],
            cwd=ROOT,
            env=os.environ | {"REDIS_URL": redis_url, "MMSERVE_DRAIN_S": str(drain_s)},
        )
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", headers=HEADERS, timeout=60, trust_env=False
        )

    async def until_ready(self, status: int) -> None:
        """Until /readyz answers with this status."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await self.http.get("/readyz")).status_code == status:
                        return
                assert self.process.poll() is None
                await asyncio.sleep(LOOK_S)

    def ask(self, **body: Any) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.http.post("/v1/completions", json={**BODY, **body}))

    def socket(self) -> websockets.connect:
        return websockets.connect(
            f"ws://127.0.0.1:{self.port}/ws/v1/completions", additional_headers=HEADERS, proxy=None
        )

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.process.wait, 30)


@contextlib.asynccontextmanager
async def daphne(redis_url: str, drain_s: float) -> AsyncIterator[Daphne]:
    found = Daphne(redis_url, drain_s)
    try:
        await found.until_ready(200)
        yield found
    finally:
        await found.http.aclose()
        found.process.kill()
        found.process.wait()


def texts(body: bytes) -> list[str]:
    """The events of a stream."""
    lines = body.decode().split("\n\n")
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def records(redis_url: str) -> list[UsageRecord]:
    rows = redis_sync.Redis.from_url(redis_url).xrange(USAGE_STREAM)
    return [msgspec.json.decode(fields[b"record"], type=UsageRecord) for _, fields in rows]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_requests_in_flight_finish_and_new_ones_are_refused_until_then(redis_url, layer, number):
    async with (
        daphne(redis_url, FOR_EVER_S) as gateway,
        FakeEngine(redis_url, layer, script=words("yes", " sir")) as engine,
        gateway.socket() as idle,
        gateway.socket() as busy,
    ):
        engine.gate.clear()
        frame = {"type": "request", "endpoint": "completions", "body": BODY}
        await busy.send(json.dumps({**frame, "id": "early"}))
        stream, whole = gateway.ask(stream=True), gateway.ask()
        await engine.until(lambda: len(engine.jobs) == 3)
        gateway.signal(number)
        await gateway.until_ready(503)

        refused = await gateway.ask()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_stopping"
        assert refused.headers["retry-after"] == "1"
        assert (await gateway.http.get("/healthz")).status_code == 200
        assert (await gateway.http.get("/readyz")).json()["checks"]["gateway"] == "stopping"
        await busy.send(json.dumps({**frame, "id": "late"}))
        late = json.loads(await busy.recv())
        assert (late["id"], late["error"]["code"], late["retry_after_s"]) == ("late", "server_stopping", 1)
        await idle.wait_closed()
        assert idle.close_code == 4503
        async with gateway.socket() as newcomer:
            assert json.loads(await newcomer.recv())["error"]["code"] == "server_stopping"
            await newcomer.wait_closed()
            assert newcomer.close_code == 4503

        engine.gate.set()
        assert (await whole).json()["choices"][0]["text"] == "yes sir"
        assert texts((await stream).content)[-1] == "[DONE]"
        said = [json.loads(await busy.recv()) for _ in range(2)]
        assert [one["type"] for one in said] == ["result", "done"]
        await busy.wait_closed()
        assert busy.close_code == 4503
        assert await gateway.exit_code() == 0
    assert [one.outcome for one in records(redis_url)] == ["completed"] * 3


@pytest.mark.parametrize(("drain_s", "signals"), [(SOON_S, 1), (FOR_EVER_S, 2)])
async def test_what_the_drains_end_or_a_second_signal_cuts_is_told_why(redis_url, layer, drain_s, signals):
    async with (
        daphne(redis_url, drain_s) as gateway,
        FakeEngine(redis_url, layer, script=words("yes", " sir")) as engine,
    ):
        engine.gate.clear()
        # What is published before somebody listens is lost.
        await until(lambda: redis_sync.Redis.from_url(redis_url).pubsub_channels(f"*{engine.replica}*"))
        whole = gateway.ask()
        await engine.until(lambda: len(engine.jobs) == 1)
        async with gateway.http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as stream:
            # Its headers come once an engine is known to have it: until then nobody knows whom to tell to stop.
            gateway.signal()
            await gateway.until_ready(503)
            if signals == 2:
                gateway.signal()
            events = texts(await stream.aread())
        assert json.loads(events[-2])["error"]["code"] == "server_stopping"
        assert events[-1] == "[DONE]"
        assert (await whole).status_code == 503
        assert (await whole).json()["error"]["code"] == "server_stopping"
        assert await gateway.exit_code() == 0
        await engine.until(lambda: set(engine.cancelled) == set(engine.jobs))
    assert [(one.outcome, one.status) for one in records(redis_url)] == [("server_stopping", 503)] * 2


async def test_an_answer_that_its_client_reads_slowly_is_sent_to_its_end(redis_url, layer):
    text = "x" * 16_000_000  # more than the kernel's buffers take
    async with (
        daphne(redis_url, FOR_EVER_S) as gateway,
        FakeEngine(redis_url, layer, script=words(text)) as engine,
    ):
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        own.connect(("127.0.0.1", gateway.port))
        reader, writer = await asyncio.open_connection(sock=own, limit=1024)
        body = json.dumps(BODY).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (KEY.encode(), len(body), body)
        )
        await engine.until(lambda: len(engine.jobs) == 1)
        await engine.idle()
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        gateway.signal()
        await gateway.until_ready(503)
        assert text.encode() in await reader.read()
        writer.close()
        assert await gateway.exit_code() == 0
