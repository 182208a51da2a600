"""The way down a route's chain: what fails at one choice goes to the next, while its client has nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis

from inference.gateway import metrics
from inference.gateway.generation import Generation
from inference.protocol import DELTA, ERROR, GenerateRequest
from routing.core.breaker import LEAST, State
from routing.core.records import USAGE_STREAM, UsageRecord
from routing.core.route import CandidateEntry, Cause, Policy, RouteEntry
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from tests.integration.gateway.client import Response
from tests.integration.gateway.conftest import Gateway, Opener
from tests.integration.gateway.fake_engine import FakeEngine, Script, failing, words
from tests.integration.gateway.waiting import until

ROUTE = "either"
BODY: dict[str, Any] = {"model": ROUTE, "prompt": "x", "max_tokens": 4}


def two(**route: Any) -> RoutingTable:
    """A route over ``first`` and then ``second``."""
    return chained(("first", "second"), **route)


def chained(names: tuple[str, ...], **route: Any) -> RoutingTable:
    """A route over these, in this order."""
    bounds = Limits(queue_bound=2, default_deadline_s=30.0)
    return RoutingTable.build(
        revision=2,
        models=[ModelEntry(id=name, default=f"{name}@1") for name in names],
        versions=[VersionEntry(served_id=f"{name}@1", model=name) for name in names],
        aliases={},
        deployments=[DeploymentEntry(id=name, served_id=f"{name}@1", limits=bounds) for name in names],
        routes=[
            RouteEntry(
                id=ROUTE,
                candidates=tuple(CandidateEntry(target=name) for name in names),
                policy=Policy.PRIORITY,
                **route,
            )
        ],
    )


async def has_table(gateway: Gateway, table: RoutingTable) -> None:
    gateway.table = table
    gateway.runtime.table.push(table.revision)
    await until(lambda: gateway.runtime.table.revision == table.revision)


def engine(gateway: Gateway, name: str, script: Script) -> FakeEngine:
    return FakeEngine(gateway.redis_url, gateway.layer, deployment=name, script=script)


async def both_ready(gateway: Gateway) -> None:
    await all_ready(gateway, ("first", "second"))


async def all_ready(gateway: Gateway, names: tuple[str, ...]) -> None:
    loads = gateway.runtime.live.loads
    await until(lambda: all(name in loads and loads[name].ready for name in names))


def answered_by(served_id: str) -> float:
    """What /metrics says."""
    labels = {"endpoint": "completions", "status": "200", "model": served_id}
    [family] = metrics._requests.collect()
    found = [one.value for one in family.samples if one.labels == labels and one.name.endswith("_total")]
    return sum(found)


LOST = failing("engine_lost", "the engine is out of order")


async def test_a_request_that_is_over_leaves_nothing_to_the_garbage_collector(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two(hedge_share=1.0))
        async with engine(gateway, "first", words("hi")), engine(gateway, "second", LOST):
            await both_ready(gateway)
            await gateway.client.post("/v1/completions", BODY)
            gc.collect()
            gc.disable()
            try:
                for stream in (False, True):
                    await gateway.client.post("/v1/completions", {**BODY, "stream": stream})
                await until(lambda: not any(type(one) is Generation for one in gc.get_objects()))
            finally:
                gc.enable()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_byte_goes_to_the_next_choice(
    open_gateway: Opener, stream: bool
) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        async with engine(gateway, "first", LOST), engine(gateway, "second", words("hello", "!")):
            await both_ready(gateway)
            before = answered_by("second@1"), answered_by("first@1")
            answer = await gateway.client.post("/v1/completions", {**BODY, "stream": stream})
            after = answered_by("second@1"), answered_by("first@1")
    assert after == (before[0] + 1, before[1])
    assert answer.status == 200
    assert answer.headers["x-mmserve-model"] == "second@1"
    assert b"hello" in answer.body
    assert b"out of order" not in answer.body


async def test_an_error_that_comes_while_the_request_is_being_sent_goes_to_the_next_choice(
    open_gateway: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        admit = gateway.runtime.admission.admit

        async def answered_late(*given: Any, **more: Any) -> Any:
            rates = await admit(*given, **more)
            await until(lambda: any(flight.pending or flight.attempt > 1 for flight in gateway.runtime.hub))
            return rates

        async with engine(gateway, "first", LOST), engine(gateway, "second", words("hello", "!")):
            await both_ready(gateway)
            monkeypatch.setattr(gateway.runtime.admission, "admit", answered_late)
            answer = await gateway.client.post("/v1/completions", BODY)
    assert answer.status == 200
    assert answer.headers["x-mmserve-model"] == "second@1"


async def test_a_clients_own_mistake_goes_nowhere_else(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        wrong = failing("invalid_value", "seed is too large", "seed")
        async with engine(gateway, "first", wrong), engine(gateway, "second", words("hello")) as second:
            await both_ready(gateway)
            answer = await gateway.client.post("/v1/completions", BODY)
    assert answer.status == 400
    assert answer.json()["error"]["param"] == "seed"
    assert not second.jobs


async def test_a_prompt_that_is_too_long_for_one_goes_to_the_next(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        short = failing("context_length_exceeded", "700 tokens, 512 fit", "prompt")
        async with engine(gateway, "first", short), engine(gateway, "second", words("hello")):
            await both_ready(gateway)
            answer = await gateway.client.post("/v1/completions", BODY)
    assert answer.status == 200
    assert answer.headers["x-mmserve-model"] == "second@1"


async def test_a_full_queue_goes_to_the_next_choice(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        async with (
            engine(gateway, "first", words("one")) as first,
            engine(gateway, "second", words("two")),
        ):
            await both_ready(gateway)
            first.pulling.clear()
            before = metrics.fallbacks._value.get()
            answers = [asyncio.create_task(gateway.client.post("/v1/completions", BODY)) for _ in range(4)]
            await until(lambda: sum(task.done() for task in answers) >= 2)
            first.pulling.set()
            found = [await task for task in answers]
    assert [one.status for one in found] == [200] * 4
    by_second = sum(one.headers["x-mmserve-model"] == "second@1" for one in found)
    assert 0 < by_second < 4
    assert metrics.fallbacks._value.get() - before == by_second


async def test_without_a_first_token_in_time_the_next_choice_answers(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two(first_token_s=0.3))
        async with (
            engine(gateway, "first", words("late")) as first,
            engine(gateway, "second", words("in time")),
        ):
            await both_ready(gateway)
            first.gate.clear()
            answer = await gateway.client.post("/v1/completions", {**BODY, "stream": True})
            assert answer.status == 200
            assert b"in time" in answer.body
            assert b"late" not in answer.body
            await first.until(lambda: bool(first.cancelled))


async def test_each_choice_has_the_routes_time_for_its_first_token(open_gateway: Opener) -> None:
    names = ("first", "second", "third")
    async with open_gateway() as gateway:
        await has_table(gateway, chained(names, first_token_s=0.3))
        async with (
            engine(gateway, "first", words("late")) as first,
            engine(gateway, "second", words("late")) as second,
            engine(gateway, "third", words("in time")),
        ):
            await all_ready(gateway, names)
            first.gate.clear()
            second.gate.clear()
            answer = await gateway.client.post("/v1/completions", BODY)
            assert answer.headers["x-mmserve-model"] == "third@1"
            await second.until(lambda: bool(second.cancelled))


async def test_the_last_choice_may_take_as_long_as_the_request(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two(first_token_s=0.2))
        async with engine(gateway, "first", LOST), engine(gateway, "second", words("slow")) as second:
            await both_ready(gateway)
            second.gate.clear()
            asked = asyncio.create_task(gateway.client.post("/v1/completions", BODY))
            await second.until(lambda: bool(second.jobs))
            await asyncio.sleep(1.0)  # far beyond the time after which another one would be tried
            second.gate.set()
            answer = await asked
    assert answer.status == 200
    assert answer.headers["x-mmserve-model"] == "second@1"


async def test_a_route_that_does_not_fall_back_on_a_timeout_ends_nobody_for_being_slow(
    open_gateway: Opener,
) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two(first_token_s=0.2, fallback_on=frozenset(Cause) - {Cause.TIMEOUT}))
        async with engine(gateway, "first", words("slow")) as first, engine(gateway, "second", words("two")):
            await both_ready(gateway)
            first.gate.clear()
            asked = asyncio.create_task(gateway.client.post("/v1/completions", BODY))
            await first.until(lambda: bool(first.jobs))
            await asyncio.sleep(1.0)
            first.gate.set()
            answer = await asked
    assert answer.status == 200
    assert answer.headers["x-mmserve-model"] == "first@1"


async def test_a_choice_whose_breaker_has_opened_meanwhile_is_passed_over(open_gateway: Opener) -> None:
    names = ("first", "second", "third")
    async with open_gateway() as gateway:
        await has_table(gateway, chained(names))
        async with (
            engine(gateway, "first", LOST) as first,
            engine(gateway, "second", LOST) as second,
            engine(gateway, "third", words("hello")),
        ):
            await all_ready(gateway, names)
            first.pulling.clear()
            await asyncio.sleep(1.5)  # it gives up what it was waiting for
            asked = asyncio.create_task(gateway.client.post("/v1/completions", BODY))
            await until(lambda: len(gateway.runtime.hub) == 1)
            for _ in range(LEAST):
                await gateway.client.post("/v1/completions", {**BODY, "model": "second"})
            tried = len(second.jobs)
            first.pulling.set()
            answer = await asked
            assert len(second.jobs) == tried
            [fallbacks] = await fallbacks_of(gateway, answer)
    assert answer.headers["x-mmserve-model"] == "third@1"
    assert fallbacks == 1


async def test_who_was_only_passed_over_while_a_slow_first_choice_served_is_no_fallback(
    open_gateway: Opener,
) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two(first_token_s=0.3))
        async with engine(gateway, "first", words("slow")) as first, engine(gateway, "second", words("two")):
            await both_ready(gateway)
            first.gate.clear()
            asked = asyncio.create_task(gateway.client.post("/v1/completions", BODY))
            await until(lambda: any(flight.first_token_by for flight in gateway.runtime.hub))
            for _ in range(LEAST):
                gateway.runtime.generator.experience.failed("second", time.monotonic())
            await until(lambda: all(flight.first_token_by is None for flight in gateway.runtime.hub))
            first.gate.set()
            answer = await asked
            [fallbacks] = await fallbacks_of(gateway, answer)
    assert answer.headers["x-mmserve-model"] == "first@1"
    assert fallbacks == 0


async def fallbacks_of(gateway: Gateway, answer: Response) -> list[int]:
    """What its record counts, once it is written."""
    name = answer.headers["x-mmserve-decision"]
    return await until(
        lambda: [one.fallbacks for one in usage_records(gateway.redis_url) if one.request_id == name]
    )


def usage_records(url: str) -> list[UsageRecord]:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        found: Any = client.xrange(USAGE_STREAM)
    return [msgspec.json.decode(fields[b"record"], type=UsageRecord) for _, fields in found]


async def test_a_prompt_that_is_too_long_for_all_is_the_clients_mistake(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        short = failing("context_length_exceeded", "700 tokens, 512 fit", "prompt")
        async with engine(gateway, "first", short), engine(gateway, "second", short):
            await both_ready(gateway)
            answers = [await gateway.client.post("/v1/completions", BODY) for _ in range(LEAST + 1)]
            states = gateway.runtime.generator.experience.states()
    error = answers[-1].json()["error"]
    assert {one.status for one in answers} == {400}
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "prompt"
    assert "first@1: 700 tokens" in error["message"]
    assert "second@1: 700 tokens" in error["message"]
    assert set(states.values()) <= {State.CLOSED}


async def test_a_client_that_is_in_a_hurry_opens_no_breaker(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        async with engine(gateway, "first", words("one")) as first, engine(gateway, "second", words("two")):
            await both_ready(gateway)
            first.gate.clear()
            hurried = {**BODY, "deadline_ms": 50}
            for _ in range(LEAST + 1):
                assert (await gateway.client.post("/v1/completions", hurried)).status == 504
            states = gateway.runtime.generator.experience.states()
    assert set(states.values()) <= {State.CLOSED}


async def test_one_failed_answer_is_one_failure_to_its_breaker(open_gateway: Opener) -> None:
    """Nobody else may be tried: it fails once, and not again as the request ends."""
    async with open_gateway() as gateway:
        await has_table(gateway, two(fallback_on=frozenset(Cause) - {Cause.ERROR}))
        async with engine(gateway, "first", LOST) as first, engine(gateway, "second", words("hello")):
            await both_ready(gateway)
            for _ in range(LEAST):
                await gateway.client.post("/v1/completions", BODY)
            assert len(first.jobs) == LEAST
            await gateway.client.post("/v1/completions", BODY)
            assert len(first.jobs) == LEAST


async def test_a_stream_that_breaks_is_a_failure_though_it_had_begun_well(open_gateway: Opener) -> None:
    async def breaks(engine: FakeEngine, job_id: str, request: GenerateRequest) -> AsyncIterator[list[Any]]:
        yield [DELTA, 0, "half of ", [0], None, None, None]
        yield [ERROR, {"code": "engine_lost", "message": "gone", "param": None}]

    async with open_gateway() as gateway:
        await has_table(gateway, two())
        async with engine(gateway, "first", breaks):
            await until(lambda: "first" in gateway.runtime.live.loads)
            for _ in range(LEAST):
                await gateway.client.post("/v1/completions", {**BODY, "model": "first", "stream": True})
            states = gateway.runtime.generator.experience.states()
    assert states == {"first": State.OPEN}


async def test_when_all_is_spent_one_error_names_each_attempt(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        other = failing("internal_error", "it has burnt down")
        async with engine(gateway, "first", LOST), engine(gateway, "second", other):
            await both_ready(gateway)
            answer = await gateway.client.post("/v1/completions", BODY)
    assert answer.status == 503
    error = answer.json()["error"]
    assert error["code"] == "all_attempts_failed"
    assert "first@1: the engine is out of order" in error["message"]
    assert "second@1: it has burnt down" in error["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_a_choice_that_was_full_is_named_when_the_last_one_fails(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        async with engine(gateway, "first", words("one")) as first, engine(gateway, "second", LOST):
            await both_ready(gateway)
            first.pulling.clear()
            asked = [asyncio.create_task(gateway.client.post("/v1/completions", BODY)) for _ in range(4)]
            # The engine may take one yet that it was waiting for.
            failed = await until(lambda: [one for one in asked if one.done() and one.result().status != 200])
            answer = failed[0].result()
            first.pulling.set()
            await asyncio.gather(*asked)
    error = answer.json()["error"]
    assert error["code"] == "all_attempts_failed"
    assert "second@1: the engine is out of order" in error["message"]


async def test_nothing_of_a_second_model_after_the_first_byte_of_another(open_gateway: Opener) -> None:
    async def breaks(engine: FakeEngine, job_id: str, request: GenerateRequest) -> AsyncIterator[list[Any]]:
        yield [DELTA, 0, "half of ", [0], None, None, None]
        yield [ERROR, {"code": "engine_lost", "message": "gone", "param": None}]

    async with open_gateway() as gateway:
        await has_table(gateway, two())
        async with (
            engine(gateway, "first", breaks) as first,
            engine(gateway, "second", words("another")) as second,
        ):
            await both_ready(gateway)
            first.batch = False
            answer = await gateway.client.post("/v1/completions", {**BODY, "stream": True})
    # Either its text was on the way when the engine broke, or nothing was: never both models' words.
    if b"half of" in answer.body:
        assert b"another" not in answer.body
        assert b"gone" in answer.body
        assert not second.jobs
    else:
        assert b"another" in answer.body


@pytest.mark.parametrize(
    ("route", "wishes"),
    [({"fallback_on": frozenset(Cause) - {Cause.ERROR}}, {}), ({}, {"no_fallback": True})],
)
async def test_a_wish_for_no_fallback_and_a_route_that_forbids_it_are_kept(
    open_gateway: Opener, route: dict[str, Any], wishes: dict[str, Any]
) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two(**route))
        async with engine(gateway, "first", LOST), engine(gateway, "second", words("hello")) as second:
            await both_ready(gateway)
            answer = await gateway.client.post("/v1/completions", {**BODY, "mmserve": wishes})
    assert answer.status == 503
    assert answer.json()["error"]["code"] == "engine_lost"
    assert not second.jobs


async def test_who_fails_often_is_left_alone_by_its_breaker(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        async with engine(gateway, "first", LOST) as first, engine(gateway, "second", words("hello")):
            await both_ready(gateway)
            for _ in range(LEAST):
                await gateway.client.post("/v1/completions", BODY)
            tried = len(first.jobs)
            explained = await gateway.client.post("/v1/routing/explain", BODY)
            await gateway.client.post("/v1/completions", BODY)
            assert len(first.jobs) == tried
    [broken] = [one for one in explained.json()["candidates"] if one["id"] == "first"]
    assert broken["reasons"] == ["its circuit breaker is open"]
    assert explained.json()["chosen"] == "second"
