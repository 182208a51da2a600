"""No token lost, doubled or out of order, whatever happens between the engine and the gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import redis as redis_sync

from inference.protocol import ACCEPTED, DELTA, DONE
from tests.integration.gateway.conftest import heard
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.waiting import until

CHAT = {"model": "acme/echo", "messages": [{"role": "user", "content": "say"}], "stream": True}
LETTERS = [chr(ord("a") + at) for at in range(20)]


def kinds(message: dict[str, Any]) -> set[int]:
    return {event[2] for event in message["events"]}


async def test_a_lost_message_in_the_middle_is_asked_for_again(open_gateway):
    lost = []

    def lose(message: dict[str, Any]) -> bool:
        if not message.get("resent") and not lost and any(event[1] == 5 for event in message["events"]):
            lost.append(message)
            return True
        return False

    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words(*LETTERS)) as engine,
    ):
        engine.lose = lose
        response = await gateway.client.post("/v1/chat/completions", CHAT)
    assert response.text() == "".join(LETTERS)
    assert lost
    assert engine.resends


async def test_a_lost_end_is_noticed_by_the_silence(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words(*LETTERS)) as engine,
    ):
        engine.lose = lambda message: not message.get("resent") and DONE in kinds(message)
        response = await gateway.client.post("/v1/chat/completions", CHAT)
    assert response.text() == "".join(LETTERS)
    assert response.events()[-1] == "[DONE]"


async def test_a_lost_acceptance_is_noticed_by_the_silence(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words(*LETTERS)) as engine,
    ):
        engine.batch = True
        engine.lose = lambda message: not message.get("resent") and ACCEPTED in kinds(message)
        response = await gateway.client.post("/v1/chat/completions", CHAT)
    assert response.text() == "".join(LETTERS)


async def test_messages_that_arrive_twice_are_taken_once(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words(*LETTERS)) as engine,
    ):
        send = engine._send

        async def twice(channel: str, message: dict[str, Any]) -> None:
            await send(channel, message)
            await send(channel, message)

        engine._send = twice
        response = await gateway.client.post("/v1/chat/completions", CHAT)
    assert response.text() == "".join(LETTERS)


async def test_an_engine_killed_in_the_middle_is_continued_by_another_after_the_same_tokens(open_gateway):
    async def half(engine, job_id, request):
        for at, letter in enumerate(LETTERS[:10]):
            yield [DELTA, 0, letter, [at], None, None, None]
        await asyncio.Event().wait()

    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=half) as first,
        gateway.client.begin("/v1/chat/completions", CHAT) as (response, task, _),
    ):
        await response.until(b'"j"')
        async with FakeEngine(gateway.redis_url, gateway.layer, script=words(*LETTERS)) as second:
            await first.kill()
            await first.say_lost()
            await task
    assert response.text() == "".join(LETTERS)
    (request,) = second.jobs.values()
    assert request.resume_token_ids == list(range(10))
    assert [name.rpartition("-")[2] for name in second.jobs] == ["2"]


async def test_an_engine_that_falls_silent_is_replaced_when_its_beats_are_stale(open_gateway):
    async def nothing(engine, job_id, request):
        await asyncio.Event().wait()
        yield []

    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=nothing) as first,
        gateway.client.begin("/v1/chat/completions", CHAT) as (response, task, _),
    ):
        await response.until(b"assistant")
        await first.kill()
        async with FakeEngine(gateway.redis_url, gateway.layer, script=words("again")):
            await task
    assert response.text() == "again"


async def test_a_seeded_answer_that_has_begun_ends_with_an_error_and_done(open_gateway):
    async def half(engine, job_id, request):
        yield [DELTA, 0, "half", [1], None, None, None]
        await asyncio.Event().wait()

    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=half) as engine,
        gateway.client.begin("/v1/chat/completions", {**CHAT, "seed": 7}) as (response, task, _),
    ):
        await response.until(b"half")
        await engine.kill()
        await engine.say_lost()
        await task
    *_, error, last = response.events()
    assert error["error"]["code"] == "engine_lost"
    assert last == "[DONE]"


async def test_an_answer_that_does_not_stream_is_made_anew_whatever_its_sampling(open_gateway):
    async def half(engine, job_id, request):
        yield [DELTA, 0, "half", [1], None, None, None]
        await engine.until(lambda: False, timeout_s=60)

    body = {"model": "acme/echo", "prompt": "say", "seed": 7, "n": 2}
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=half) as first,
        gateway.client.begin("/v1/completions", body) as (response, task, _),
    ):
        await first.until(lambda: bool(first.jobs))
        async with FakeEngine(gateway.redis_url, gateway.layer, script=words("whole")) as second:
            await second.until(lambda: True)
            await first.kill()
            await first.say_lost()
            await task
    assert [choice["text"] for choice in response.json()["choices"]] == ["whole", "whole"]


async def test_a_job_that_redis_forgot_is_enqueued_again(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("late")) as engine,
    ):
        await heard(gateway)
        engine.pulling.clear()
        async with gateway.client.begin("/v1/chat/completions", CHAT) as (response, task, _):
            client = redis_sync.Redis.from_url(gateway.redis_url)
            # The engine's last blocking pop may still take the first job: forget whatever waits.
            await until(lambda: client.llen("rq:queue:echo.normal") or engine.jobs)
            client.flushall()
            client.close()
            engine.pulling.set()
            await task
    assert response.text() == "late"


async def test_a_request_past_its_deadline_gets_504(open_gateway):
    async def nothing(engine, job_id, request):
        await asyncio.Event().wait()
        yield []

    async with open_gateway(deadline_grace_s=0.0) as gateway:
        gateway.table = gateway.table_with(revision=2, default_deadline_s=0.5)
        await gateway.runtime.table.look()
        async with FakeEngine(gateway.redis_url, gateway.layer, script=nothing) as engine:
            await heard(gateway)
            body = {"model": "acme/echo", "prompt": "say"}
            response = await gateway.client.post("/v1/completions", body)
            await engine.until(lambda: bool(engine.cancelled))
    assert response.status == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
