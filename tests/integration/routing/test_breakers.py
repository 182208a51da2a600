"""The circuit breakers of running gateway processes, as ``/v1/routing/stats`` shows them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis
from rest_framework.test import APIClient

from routing import rollup
from routing.core.breaker import LEAST, State
from routing.core.records import BREAKERS_KEY, BREAKERS_STALE_S, BreakerReport
from tests.integration.api.conftest import ada, manage_key, manager
from tests.integration.gateway.conftest import Gateway, running_gateway
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.test_fallback import BODY, LOST, both_ready, engine, has_table, two

__all__ = ["ada", "manage_key", "manager"]


class Process:
    """A gateway with a route over two engines, the first of which is out of order, in a thread's event loop."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._down = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._up.wait(30)

    def do(self, work: Callable[[Gateway, FakeEngine], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(self._gateway, self._first), self._loop).result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(60)
        self._loop.close()

    async def _run(self) -> None:
        async with running_gateway(self._redis_url) as gateway:
            await has_table(gateway, two())
            async with (
                engine(gateway, "first", LOST) as first,
                engine(gateway, "second", words("hello")),
            ):
                await both_ready(gateway)
                self._gateway, self._first = gateway, first
                self._up.set()
                await self._down.wait()


@pytest.fixture
def opened(redis_url: str) -> Iterator[Callable[[], Process]]:
    """``opened()`` is one gateway process more."""
    with contextlib.ExitStack() as stack:

        def open_one() -> Process:
            process = Process(redis_url)
            stack.callback(process.close)
            return process

        yield open_one


async def ask(gateway: Gateway, first: FakeEngine) -> None:
    await gateway.client.post("/v1/completions", BODY)


async def ask_often(gateway: Gateway, first: FakeEngine) -> None:
    for _ in range(LEAST):
        await ask(gateway, first)


async def mended(gateway: Gateway, first: FakeEngine) -> None:
    first.script = words("hello again")


async def who_answers(gateway: Gateway, first: FakeEngine) -> str:
    return (await gateway.client.post("/v1/completions", BODY)).headers["x-mmserve-model"]


def shown(manager: APIClient, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The statistics, once they are so."""

    deadline = time.monotonic() + 20
    while not condition(found := manager.get("/v1/routing/stats").json()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def worst(found: dict[str, Any]) -> dict[str, str]:
    return {one["deployment"]: one["worst"] for one in found["breakers"]}


@pytest.mark.django_db(transaction=True)
def test_the_state_of_each_gateway_process_and_the_worst_one_are_shown(
    manager: APIClient, opened: Callable[[], Process], client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routing.core.breaker.FIRST_COOLDOWN_S", 600.0)
    failing, other = opened(), opened()
    failing.do(ask_often)
    other.do(ask)
    found = shown(
        manager,
        lambda now: len(now["processes"]) == 2 and worst(now) == {"first": "open", "second": "closed"},
    )
    first = found["breakers"][0]
    assert (first["deployment"], first["version"]) == ("first", "first@1")
    assert sorted(first["processes"].values()) == ["closed", "open"]
    assert set(first["processes"]) == set(found["processes"])

    rollup.roll_up_all(client)
    rows = shown(manager, lambda now: bool(now["data"]))["data"]
    assert {row["version"]: row["breaker"] for row in rows} == {"second@1": "closed"}
    only = manager.get("/v1/routing/stats?version=second@1").json()
    assert worst(only) == {"second": "closed"}
    assert worst(manager.get("/v1/routing/stats?model=first").json()) == {"first": "open"}
    assert worst(manager.get("/v1/routing/stats?route=either").json()) == {
        "first": "open",
        "second": "closed",
    }


@pytest.mark.django_db(transaction=True)
def test_one_that_is_mended_is_probed_and_closes_again(
    manager: APIClient, opened: Callable[[], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routing.core.breaker.FIRST_COOLDOWN_S", 0.5)
    process = opened()
    process.do(ask_often)
    process.do(mended)
    shown(manager, lambda now: worst(now).get("first") == "half_open")

    def closed(now: dict[str, Any]) -> bool:
        process.do(who_answers)
        return worst(now).get("first") == "closed"

    shown(manager, closed)
    assert process.do(who_answers) == "first@1"


@pytest.mark.django_db(transaction=True)
def test_a_process_that_has_left_is_shown_no_more(manager: APIClient, redis_url: str) -> None:
    process = Process(redis_url)
    try:
        process.do(ask)
        shown(manager, lambda now: bool(worst(now)))
    finally:
        process.close()
    found = manager.get("/v1/routing/stats").json()
    assert (found["processes"], found["breakers"]) == ([], [])


@pytest.mark.django_db
def test_a_process_that_died_is_forgotten_and_what_is_malformed_harms_nobody(
    manager: APIClient, client: redis.Redis
) -> None:
    states = {"first": ("first@1", State.OPEN)}
    for name, age_s in (("gateway old", BREAKERS_STALE_S + 1), ("gateway new", 0.0)):
        report = BreakerReport(at=time.time() - age_s, states=states)
        client.hset(BREAKERS_KEY, name, msgspec.json.encode(report))
    client.hset(BREAKERS_KEY, "gateway odd", b'{"at": 1, "states": {"first": 3}}')
    found = manager.get("/v1/routing/stats").json()
    assert found["processes"] == ["gateway new"]
    assert found["breakers"][0]["processes"] == {"gateway new": "open"}
    assert client.hkeys(BREAKERS_KEY) == [b"gateway new"]
