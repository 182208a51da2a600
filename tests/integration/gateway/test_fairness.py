"""Who waits in which order: fair between keys, strict by class, and nobody for ever."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import redis

from inference.engine import rqkeys, scripts
from inference.gateway.auth import KeyGrant
from inference.protocol import bell_key, fence_key
from tests.integration.gateway.conftest import Gateway
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.waiting import until

BODY = {"model": "acme/echo", "prompt": "x", "max_tokens": 1}
MANY = 100


def pull(url: str, most: int, *, aged_before: float = 0.0) -> list[str]:
    """The ids that a worker would get, in their order."""
    connection = redis.Redis.from_url(url)
    queues = rqkeys.deployment_queues("echo")
    keys = [
        *map(rqkeys.queue_key, queues),
        bell_key("echo"),
        rqkeys.worker_key("w"),
        rqkeys.worker_executions_key("w"),
        fence_key("r"),
    ]
    args = [
        most,
        "w",
        rqkeys.stamp(time.time()),
        time.time(),
        90,
        "p",
        rqkeys.stamp(aged_before),
        "r",
        *queues,
    ]
    _, _, *rows = connection.register_script(scripts.source("pull"))(keys=keys, args=args)
    connection.close()
    return [row[0].decode() for row in rows]


def lengths(url: str) -> list[int]:
    connection = redis.Redis.from_url(url)
    found = [connection.llen(rqkeys.queue_key(name)) for name in rqkeys.deployment_queues("echo")]
    connection.close()
    return [int(str(count)) for count in found]


async def ask(gateway: Gateway, tasks: list[asyncio.Task[Any]], key: str, count: int, **body: Any) -> None:
    """Requests that wait: nobody pulls."""
    before = sum(lengths(gateway.redis_url))
    for number in range(count):
        if number:
            # In this order, so that tests may speak of it.
            await until(lambda at=before + number: sum(lengths(gateway.redis_url)) >= at)
        tasks.append(asyncio.create_task(gateway.client.post("/v1/completions", {**BODY, **body}, key=key)))
    await until(lambda: sum(lengths(gateway.redis_url)) >= before + count)


def owners(gateway: Gateway, ids: list[str]) -> list[str]:
    flights = {flight.job_id: flight.grant.id for flight in gateway.runtime.hub}
    return [flights[one] for one in ids]


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def waiting_engine(gateway: Gateway) -> FakeEngine:
    engine = FakeEngine(gateway.redis_url, gateway.layer, deployment="echo", script=words("x"))
    engine.pulling.clear()
    return engine


def two_keys(gateway: Gateway) -> None:
    gateway.table = gateway.table_with(revision=2, queue_bound=1000)
    gateway.runtime.table.push(2)
    gateway.keys.grants["mm-other"] = KeyGrant(id="k9", name="other", scopes=frozenset({"infer"}))


async def test_a_key_with_many_jobs_does_not_stop_one_with_a_single_job(open_gateway):
    async with open_gateway() as gateway, waiting_engine(gateway):
        two_keys(gateway)
        await until(lambda: gateway.runtime.table.revision == 2)
        tasks: list[asyncio.Task[Any]] = []
        await ask(gateway, tasks, "mm-good", MANY)
        await ask(gateway, tasks, "mm-other", 1)

        first = owners(gateway, pull(gateway.redis_url, 3))
        await end(tasks)
    assert "k9" in first[:2]


async def test_two_keys_with_many_jobs_take_turns(open_gateway, monkeypatch):
    # Who pulls here sends no beats: its jobs would be put back.
    monkeypatch.setattr("inference.gateway.recovery.SILENCE_S", 60.0)
    async with open_gateway() as gateway, waiting_engine(gateway):
        two_keys(gateway)
        await until(lambda: gateway.runtime.table.revision == 2)
        tasks: list[asyncio.Task[Any]] = []
        await ask(gateway, tasks, "mm-good", 30)
        pulled = owners(gateway, pull(gateway.redis_url, 10))
        await ask(gateway, tasks, "mm-other", 10)
        found = owners(gateway, pull(gateway.redis_url, 20))
        await end(tasks)
    assert pulled == ["k1"] * 10
    assert 8 <= found.count("k9") <= 10


async def test_one_keys_jobs_keep_their_order(open_gateway):
    async with open_gateway() as gateway, waiting_engine(gateway):
        tasks: list[asyncio.Task[Any]] = []
        for _ in range(5):
            await ask(gateway, tasks, "mm-good", 1)
        begun = [flight.job_id for flight in sorted(gateway.runtime.hub, key=lambda one: one.begun_at)]
        found = pull(gateway.redis_url, 5)
        await end(tasks)
    assert found == begun


async def test_classes_are_strict_but_an_aged_job_goes_now_and_then(open_gateway):
    async with open_gateway() as gateway, waiting_engine(gateway):
        tasks: list[asyncio.Task[Any]] = []
        await ask(gateway, tasks, "mm-good", 2, priority="low")
        await ask(gateway, tasks, "mm-good", 6, priority="high")
        low = {flight.job_id for flight in gateway.runtime.hub if flight.request.priority == "low"}

        strict = [pull(gateway.redis_url, 1) for _ in range(3)]
        aged = [pull(gateway.redis_url, 1, aged_before=time.time() + 1) for _ in range(4)]
        await end(tasks)
    assert not low & {job for jobs in strict for job in jobs}
    served = [job in low for jobs in aged for job in jobs]
    assert served.count(True) == 1
