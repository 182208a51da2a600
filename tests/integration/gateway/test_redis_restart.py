"""Redis is killed and comes back empty; nobody's answer is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from inference.protocol import gateway_key
from tests.conftest import start_redis
from tests.integration.gateway.conftest import Gateway, heard
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.waiting import until

CHAT = {"model": "acme/echo", "messages": [{"role": "user", "content": "say"}], "stream": True}


class OwnRedis:
    """A Redis of this test's own, which it may kill."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.url = f"unix://{socket}"
        self.start()

    def start(self) -> None:
        self._process = start_redis(self._socket)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    found = OwnRedis(tmp_path / "own.sock")
    yield found
    found.kill()


async def test_a_stream_goes_on_and_a_waiting_job_is_enqueued_again(own_redis, open_gateway_at):
    letters = [chr(ord("a") + at) for at in range(10)]
    async with (
        open_gateway_at(own_redis.url) as gateway,
        FakeEngine(own_redis.url, gateway.layer, script=words(*letters)) as engine,
    ):
        await heard(gateway)
        engine.gate.clear()
        async with gateway.client.begin("/v1/chat/completions", CHAT) as (running, first, _):
            await running.until(b"assistant")
            engine.pulling.clear()
            async with gateway.client.begin("/v1/chat/completions", CHAT) as (waiting, second, _):
                await queued(own_redis.url, engine)
                own_redis.kill()
                engine.gate.set()  # it talks while nobody can hear
                await asyncio.to_thread(own_redis.start)
                engine.pulling.set()
                await asyncio.gather(first, second)
        again = await gateway.client.post("/v1/chat/completions", CHAT)
        await alive(own_redis.url, gateway)
    assert running.text() == waiting.text() == again.text() == "".join(letters)


async def queued(url: str, engine: FakeEngine) -> None:
    """Until the second job is in the queue, or in the hands of a pop that had begun before the pause."""
    client = redis.Redis.from_url(url)
    await until(lambda: client.llen("rq:queue:echo.normal") or len(engine.jobs) > 1)
    client.close()


async def alive(url: str, gateway: Gateway) -> None:
    """Until the gateway has said to the new Redis that it lives."""
    client = redis.Redis.from_url(url)
    await until(lambda: client.exists(gateway_key(gateway.runtime._channel)))
    client.close()
