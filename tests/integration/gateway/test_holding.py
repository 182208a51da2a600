"""What waits for a model that is not up, how long anything may take, and who may be how important."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import msgspec
import pytest
import redis

from routing.core.breaker import LEAST, State
from tests.integration.gateway.conftest import KEY, Gateway, heard
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.waiting import until

BODY = {"model": "acme/echo", "prompt": "say", "max_tokens": 8}


async def change(gateway: Gateway, *, entry: dict[str, Any] | None = None, **limits: Any) -> None:
    """A new table, as if an operator had edited the deployment."""
    revision = gateway.table.revision + 1
    found = gateway.table_with(revision=revision, **limits)
    echo = dataclasses.replace(found.deployments["echo"], **(entry or {}))
    gateway.table = dataclasses.replace(found, deployments={**found.deployments, "echo": echo})
    gateway.runtime.table.push(revision)
    await until(lambda: gateway.runtime.table.revision == revision)


def queued(gateway: Gateway, priority: str = "normal") -> list[bytes]:
    client = redis.Redis.from_url(gateway.redis_url)
    found = client.lrange(f"rq:queue:echo.{priority}", 0, -1)
    client.close()
    return list(found)  # type: ignore[arg-type]


@pytest.mark.parametrize(("load_s", "retry_after"), [(20.2, "21"), (None, "10")])
async def test_one_more_than_may_wait_for_a_model_is_told_when_it_will_be_up(
    open_gateway, load_s, retry_after
):
    async with open_gateway() as gateway:
        await change(gateway, entry={"load_s": load_s}, hold_bound=2)
        waiting = [asyncio.create_task(gateway.client.post("/v1/completions", BODY)) for _ in range(2)]
        await until(lambda: len(queued(gateway)) == 2)
        refused = await gateway.client.post("/v1/completions", BODY)
        assert not any(task.done() for task in waiting)
        async with FakeEngine(gateway.redis_url, gateway.layer, script=words("x")):
            answers = await asyncio.gather(*waiting)
    assert refused.status == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert "2 requests wait for it, 2 may" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"] == retry_after
    assert [answer.status for answer in answers] == [200, 200]


async def test_a_model_that_is_up_goes_by_its_queues_bound(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("x")) as up,
    ):
        await change(gateway, hold_bound=1)
        await heard(gateway)
        up.pulling.clear()
        asked = [asyncio.create_task(gateway.client.post("/v1/completions", BODY)) for _ in range(4)]
        await until(lambda: len(queued(gateway)) + len(up.jobs) == 4)
        up.pulling.set()
        answers = await asyncio.gather(*asked)
    assert [answer.status for answer in answers] == [200] * 4


async def test_a_request_that_cannot_wait_for_the_load_is_told_how_long_it_takes(open_gateway):
    async with open_gateway() as gateway:
        await change(gateway, entry={"load_s": 20.0})
        refused = await gateway.client.post("/v1/completions", {**BODY, "deadline_ms": 5000})
        assert queued(gateway) == []
    assert refused.status == 503
    assert refused.json()["error"]["code"] == "model_loading"
    assert refused.headers["retry-after"] == "20"


async def test_a_requests_own_deadline_ends_it_in_the_queue_and_takes_its_job_along(open_gateway):
    async with open_gateway() as gateway:
        refused = await gateway.client.post("/v1/completions", {**BODY, "deadline_ms": 300})
        await until(lambda: queued(gateway) == [])
        async with FakeEngine(gateway.redis_url, gateway.layer, script=words("x")) as engine:
            await heard(gateway)
            after = await gateway.client.post("/v1/completions", BODY)
    assert refused.status == 504
    assert refused.json()["error"]["code"] == "deadline_exceeded"
    assert after.status == 200
    assert len(engine.jobs) == 1


@pytest.mark.parametrize(("asked_ms", "expected_s"), [(None, 30.0), (4000, 4.0), (900_000, 30.0)])
async def test_a_deadline_is_never_longer_than_the_deployments(open_gateway, asked_ms, expected_s):
    body = BODY if asked_ms is None else {**BODY, "deadline_ms": asked_ms}
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("x")) as engine,
    ):
        await heard(gateway)
        engine.gate.clear()
        begun = asyncio.create_task(gateway.client.post("/v1/completions", body))
        await engine.until(lambda: bool(engine.jobs))
        (flight,) = gateway.runtime.hub
        life_s = flight.deadline_at - flight.begun_at
        engine.gate.set()
        await begun
    assert life_s == pytest.approx(expected_s, abs=0.1)


@pytest.mark.parametrize(
    ("key", "asked", "queue"),
    [
        ("high", "high", "high"),
        ("high", None, "normal"),
        ("normal", None, "normal"),
        ("normal", "low", "low"),
        ("normal", "high", None),
        ("normal", -5, None),
        ("low", None, "low"),
        ("low", "normal", None),
    ],
)
async def test_a_key_has_a_highest_class(open_gateway, key, asked, queue):
    body = BODY if asked is None else {**BODY, "priority": asked}
    async with open_gateway() as gateway:
        gateway.keys.grants[KEY] = msgspec.structs.replace(gateway.keys.grants[KEY], priority=key)
        if queue is None:
            refused = await gateway.client.post("/v1/completions", body)
            assert refused.status == 403
            error = refused.json()["error"]
            assert (error["param"], error["code"]) == ("priority", "priority_not_allowed")
            assert f"{key!r} at most" in error["message"]
        else:
            asked_for = asyncio.create_task(gateway.client.post("/v1/completions", body))
            await until(lambda: len(queued(gateway, queue)) == 1)
            asked_for.cancel()
            await asyncio.gather(asked_for, return_exceptions=True)


def outlook_of_echo(**fields: Any) -> dict[str, Any]:
    told = {"status": "asleep", "stage": "Others have its memory.", "eta_s": 8.0, **fields}
    return {"type": "deployments.outlook", "deployments": {"echo": told}}


async def test_a_gateway_holds_and_refuses_by_what_it_was_told_last(open_gateway):
    async with open_gateway() as gateway:
        gateway.runtime.hub.dispatch(outlook_of_echo())
        refused = await gateway.client.post("/v1/completions", {**BODY, "deadline_ms": 5000})
        gateway.runtime.hub.dispatch(outlook_of_echo(eta_s=3.0))
        held = asyncio.create_task(gateway.client.post("/v1/completions", {**BODY, "deadline_ms": 5000}))
        await until(lambda: len(gateway.runtime.hub) == 1)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
    assert refused.status == 503
    assert refused.headers["retry-after"] == "8"


async def test_a_status_event_has_stage_bytes_and_seconds(open_gateway):
    async with open_gateway() as gateway:
        gateway.runtime.hub.dispatch(
            outlook_of_echo(status="loading", stage="fetching files", done_bytes=5, total_bytes=20)
        )
        headers = {"x-mmserve-status": "events"}
        async with gateway.client.begin("/v1/completions", {**BODY, "stream": True}, headers=headers) as (
            response,
            _,
            left,
        ):
            await response.until(b"event: status")
            left.set()
    line = next(line for line in response.body.decode().splitlines() if line.startswith("data: {"))
    told = json.loads(line.removeprefix("data: "))
    assert (told["status"], told["stage"]) == ("loading", "fetching files")
    assert (told["done_bytes"], told["total_bytes"]) == (5, 20)
    assert 0.0 < told["eta_s"] <= 8.0


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_waits_for_a_model_hears_at_once_that_it_will_not_come(open_gateway, stream):
    async with open_gateway() as gateway:
        ask = gateway.client.post
        held = [asyncio.create_task(ask("/v1/completions", {**BODY, "stream": stream})) for _ in range(LEAST)]
        await until(lambda: len(queued(gateway)) == LEAST)
        await change(gateway, entry={"failure": "it fits nowhere: a/gpu:0: needs 900.8 GiB, 18.8 GiB free"})
        answers = await asyncio.gather(*held)
        await until(lambda: not queued(gateway))
        late = await gateway.client.post("/v1/completions", BODY)
        # Nobody served them badly: whoever asks once it can be loaded is held again.
        states = gateway.runtime.generator.experience.states()
    assert {*states.values()} <= {State.CLOSED}
    for one in (*answers, late):
        assert one.status == 503
        assert one.json()["error"]["code"] == "model_not_loaded"
        assert "needs 900.8 GiB, 18.8 GiB free" in one.json()["error"]["message"]
