"""A burst on a real daphne: those without a place are refused at the door, nobody in line is lost."""

from __future__ import annotations

import asyncio
import json
import select
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest
import redis as redis_sync

from inference.gateway.config import GatewayConfig
from inference.gateway.fullness import TRUST_S
from inference.gateway.usage import USAGE_STREAM
from routing.core.records import DECISIONS_KEY
from tests.integration.gateway.conftest import KEY
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.test_daphne import CHAT, daphne, layer, post  # noqa: F401
from tests.integration.gateway.waiting import until

BOUND = 8
CROWD = 200
ASK = post("/v1/chat/completions", json.dumps(CHAT).encode())


@contextmanager
def held_up(port: int) -> Iterator[None]:
    """A gateway that does not run: what is sent meanwhile comes to it in one moment."""
    [gateway] = [
        one
        for one in psutil.Process().children()
        if "daphne_app" in " ".join(one.cmdline()) and str(port) in one.cmdline()
    ]
    gateway.suspend()
    try:
        yield
    finally:
        gateway.resume()


class Client:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._lines = self._socket.makefile("rb")

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers and JSON body of the next response."""
        status = int(self._lines.readline().split()[1])
        headers = {}
        while (line := self._lines.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, json.loads(self._lines.read(int(headers["content-length"])))

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
async def crowd(daphne: int) -> Any:  # noqa: F811
    clients = [Client(daphne) for _ in range(CROWD)]
    yield clients
    for client in clients:
        client.close()


async def started(port: int) -> None:
    """Until the gateway knows that the engine is up, and the key."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answer = await client.post(
            "/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {KEY}"}
        )
        assert answer.status_code == 200
    await asyncio.sleep(2 * TRUST_S)  # for so long its job is believed to wait


def with_an_answer(clients: list[Client]) -> list[Client]:
    return select.select(clients, [], [], 0)[0]


async def all_answers(clients: list[Client]) -> list[tuple[int, dict[str, str], dict[str, Any]]]:
    return [await asyncio.to_thread(client.answer) for client in clients]


async def test_of_a_burst_the_bound_is_answered_and_the_rest_told_at_once(daphne, layer, redis_url, crowd):  # noqa: F811
    redis = redis_sync.Redis.from_url(redis_url)
    async with FakeEngine(redis_url, layer, script=words("Hello", " you")) as engine:
        await started(daphne)
        engine.pulling.clear()
        with held_up(daphne):
            for client in crowd:
                client.send(ASK)
        # Nobody takes a job, but for one that may be on its way: whoever has an answer now was refused.
        told = await until(lambda: len(found := with_an_answer(crowd)) >= CROWD - BOUND - 1 and found)
        at_once = await all_answers(told)
        engine.pulling.set()
        taken = await all_answers([client for client in crowd if client not in told])
        await asyncio.sleep(2 * TRUST_S)  # for so long the queue is believed to be full
        # The connections of the refused ones are as good as before.
        told[-1].send(ASK)
        again = await asyncio.to_thread(told[-1].answer)

    answers = [*at_once, *taken, again]
    refused = [answer for answer in answers if answer[0] == 429]
    answered = len(answers) - len(refused)
    assert answered in (BOUND + 1, BOUND + 2)
    for _, headers, body in refused:
        assert body["error"]["code"] == "queue_full"
        assert int(headers["retry-after"]) >= 1
        assert headers["x-should-retry"] == "true"
        assert headers["x-request-id"]
        assert headers["x-mmserve-revision"] == "1"
    assert len({headers["x-mmserve-decision"] for _, headers, _ in refused}) == len(refused)
    for status, _, body in answers:
        assert status == 429 or body["choices"][0]["message"]["content"] == "Hello you"

    expected = {"queue_full": len(refused), "completed": answered + 1}
    await until(lambda: outcomes(redis) == expected)
    # Of so many only a sample is kept, as of others.
    assert 2 * GatewayConfig(redis_url=redis_url).decisions_per_s <= redis.zcard(DECISIONS_KEY) < CROWD
    redis.close()


async def test_one_in_line_may_go_on_sending(daphne, layer, redis_url, crowd):  # noqa: F811
    """Two requests in one piece, a request in two pieces, and one that comes while the first is in line."""
    async with FakeEngine(redis_url, layer, script=words("Hello", " you")):
        await started(daphne)
        with held_up(daphne):
            for client in crowd[:5]:
                client.send(ASK)
            crowd[5].send(ASK + ASK)
            crowd[6].send(ASK[:-9])
        crowd[6].send(ASK[-9:])
        crowd[4].send(ASK)
        statuses = Counter(status for status, _, _ in await all_answers(crowd[:7]))
        more = [await asyncio.to_thread(crowd[place].answer) for place in (4, 5)]
    assert statuses + Counter(status for status, _, _ in more) == {200: 9}


def outcomes(redis: redis_sync.Redis) -> Counter[str]:
    found: Counter[str] = Counter()
    for _, fields in redis.xrange(USAGE_STREAM):
        record = json.loads(fields[b"record"])
        found[record["outcome"]] += record.get("count", 1)
    return found
