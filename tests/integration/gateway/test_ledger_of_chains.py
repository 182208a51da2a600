"""What budgets hold and pay for a request that needs several choices."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
import redis

from inference.gateway import runtime
from inference.gateway.rqjob import queue_key
from inference.protocol import ERROR, GenerateRequest, queue_name
from routing.core.cost import HELD_KEY, LEDGERS_KEY, BudgetEntry, Ledger, Period, Prices, Scope, in_usd
from routing.core.records import Spent
from routing.core.table import DeploymentEntry, ModelEntry, RoutingTable, VersionEntry
from tests.integration.gateway.conftest import Gateway, Opener
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.test_fallback import (
    BODY,
    LOST,
    ROUTE,
    all_ready,
    chained,
    engine,
    has_table,
    usage_records,
)
from tests.integration.gateway.test_redis_restart import own_redis
from tests.integration.gateway.waiting import until

__all__ = ["own_redis"]

PRICES = Prices.of(per_million_input=Decimal(1), per_million_output=Decimal(2))
# "x" is a token and a byte by the bound that never under-counts, at a dollar a million; four tokens at two.
MOST_NANO = 2 * 1_000 + 4 * 2_000
# As the engine of the tests counts: three tokens of a prompt, two of an answer.
COST_NANO = 3 * 1_000 + 2 * 2_000
PROMPT_NANO = 3 * 1_000
NAMES = ("first", "second", "third")


def budget(limit_nano: int, scope: Scope = Scope.KEY) -> BudgetEntry:
    subject = "k1" if scope is Scope.KEY else ROUTE
    return BudgetEntry(
        id=scope.value, name=scope.value, scope=scope, subject=subject, period=Period.TOTAL, limit_nano=limit_nano
    )  # fmt: skip


def priced(names: tuple[str, ...], *budgets: BudgetEntry, **route: Any) -> RoutingTable:
    """A route over these, each at the same price."""
    table = chained(names, **route)
    versions = {key: dataclasses.replace(one, prices=PRICES) for key, one in table.versions.items()}
    paid_by = {(one.scope.value, one.subject): (one,) for one in budgets}
    return dataclasses.replace(table, versions=versions, budgets=paid_by)


def ledger(url: str, entry: BudgetEntry) -> Ledger:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        found = client.hget(LEDGERS_KEY, entry.place)
    return Ledger("", 0, 0) if found is None else Ledger.read(found)


async def begun_then_lost(
    engine: FakeEngine, job_id: str, request: GenerateRequest
) -> AsyncIterator[list[Any]]:
    """It has the prompt in its batch, and dies of it."""
    yield [ERROR, {"code": "engine_lost", "message": "gone", "param": None}]


def held_members(url: str) -> list[str]:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        return [one.decode() for one in client.zrange(HELD_KEY, 0, -1)]


async def settled(gateway: Gateway, entry: BudgetEntry, spent_nano: int) -> Ledger:
    """The ledger once so much was spent and nothing is held."""
    await until(lambda: ledger(gateway.redis_url, entry)[1:] == (spent_nano, 0))
    return ledger(gateway.redis_url, entry)


async def test_a_chain_holds_what_one_of_its_choices_may_cost(open_gateway: Opener) -> None:
    budgets = budget(MOST_NANO), budget(MOST_NANO, Scope.ROUTE)
    async with open_gateway() as gateway:
        await has_table(gateway, priced(NAMES, *budgets))
        async with (
            engine(gateway, "first", LOST),
            engine(gateway, "second", LOST),
            engine(gateway, "third", words("hello", "!")) as third,
        ):
            await all_ready(gateway, NAMES)
            third.gate.clear()
            asked = asyncio.create_task(gateway.client.post("/v1/completions", BODY))
            await until(lambda: third.jobs or asked.done())
            held = [ledger(gateway.redis_url, one).held_nano for one in budgets]
            third.gate.set()
            answer = await asked
            for one in budgets:
                await settled(gateway, one, COST_NANO)
            assert held_members(gateway.redis_url) == []
    assert answer.status == 200, answer.body
    assert answer.headers["x-mmserve-model"] == "third@1"
    assert held == [MOST_NANO, MOST_NANO]


async def test_a_budget_that_cannot_pay_for_the_next_choice_still_refuses(open_gateway: Opener) -> None:
    entry = budget(MOST_NANO)
    table = priced(("first", "second"), entry)
    dearer = Prices.of(per_million_input=Decimal(1), per_million_output=Decimal(3))
    versions = {**table.versions, "second@1": dataclasses.replace(table.versions["second@1"], prices=dearer)}
    async with open_gateway() as gateway:
        await has_table(gateway, dataclasses.replace(table, versions=versions))
        async with engine(gateway, "first", LOST), engine(gateway, "second", words("hello")) as second:
            await all_ready(gateway, ("first", "second"))
            answer = await gateway.client.post("/v1/completions", BODY)
            await settled(gateway, entry, 0)
            assert not second.jobs
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (503, "all_attempts_failed")
    assert "second@1: The key cannot pay" in error["message"]
    assert "$0.00001 of $0.00001 is left" in error["message"]


@pytest.mark.parametrize("begun", [False, True])
async def test_many_at_once_that_all_fall_back_never_hold_more_than_the_budget_has(
    open_gateway: Opener, begun: bool
) -> None:
    entry = budget(6 * MOST_NANO + 1, Scope.ROUTE)
    seen: list[Ledger] = []
    async with open_gateway() as gateway:
        table = priced(("first", "second"), entry)
        roomy = {
            key: dataclasses.replace(one, limits=dataclasses.replace(one.limits, queue_bound=100))
            for key, one in table.deployments.items()
        }
        await has_table(gateway, dataclasses.replace(table, deployments=roomy))
        async with (
            engine(gateway, "first", begun_then_lost if begun else LOST),
            engine(gateway, "second", words("hello", "!")) as second,
        ):
            await all_ready(gateway, ("first", "second"))
            second.gate.clear()
            asked = [asyncio.create_task(gateway.client.post("/v1/completions", BODY)) for _ in range(30)]

            def looked() -> bool:
                seen.append(ledger(gateway.redis_url, entry))
                return sum(one.done() for one in asked) + len(second.jobs) == len(asked)

            await until(looked)
            seen.append(ledger(gateway.redis_url, entry))
            second.gate.set()
            answers = [await one for one in asked]
            served = sum(one.status == 200 for one in answers)
            await until(lambda: gateway.runtime._settler.idle)
            bills = sum(
                not one.key and one.cost_nano == PROMPT_NANO for one in usage_records(gateway.redis_url)
            )
            await settled(gateway, entry, served * COST_NANO + bills * PROMPT_NANO)
    most = (entry.limit_nano - bills * PROMPT_NANO) // MOST_NANO
    assert (0 < served <= most) if begun else (served == most == 6)
    assert bool(bills) == begun
    assert max(one.spent_nano + one.held_nano for one in seen) <= entry.limit_nano


async def test_what_a_given_up_choice_held_is_not_held_again_by_a_renewal_or_a_new_redis(
    own_redis: Any, open_gateway_at: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "RENEW_LEASES_S", 0.1)
    entry = budget(2 * MOST_NANO)
    async with open_gateway_at(own_redis.url) as gateway:
        await has_table(gateway, priced(("first", "second"), entry))
        async with engine(gateway, "first", LOST), engine(gateway, "second", words("hello", "!")) as second:
            await all_ready(gateway, ("first", "second"))
            second.gate.clear()
            asked = asyncio.create_task(gateway.client.post("/v1/completions", BODY))
            await until(lambda: second.jobs)
            await gateway.runtime._renew_leases(True)
            renewed = held_members(own_redis.url), ledger(own_redis.url, entry).held_nano
            own_redis.kill()
            await asyncio.to_thread(own_redis.start)
            await until(lambda: held_members(own_redis.url))
            again = held_members(own_redis.url)
            second.gate.set()
            answer = await asked
            await until(lambda: held_members(own_redis.url) == [])
    assert answer.status == 200
    [member] = renewed[0]
    assert again == [member]
    assert renewed[1] == MOST_NANO


async def test_a_choice_that_refused_a_request_holds_nothing_of_it(open_gateway: Opener) -> None:
    entry = budget(100 * MOST_NANO)
    async with open_gateway() as gateway:
        await has_table(gateway, priced(("first", "second"), entry))
        async with (
            engine(gateway, "first", words("one", "!")) as first,
            engine(gateway, "second", words("two", "!")) as second,
        ):
            await all_ready(gateway, ("first", "second"))
            first.pulling.clear()
            second.gate.clear()
            await asyncio.sleep(1.1)  # it gives up what it was waiting for
            # Of other gateways: this one hears of them only as it asks for a place.
            with contextlib.closing(redis.Redis.from_url(gateway.redis_url)) as client:
                client.rpush(queue_key(queue_name("first", "normal")), "other-1", "other-2")
            asked = asyncio.create_task(gateway.client.post("/v1/completions", BODY))
            await until(lambda: second.jobs)
            await gateway.runtime._renew_leases(True)
            held = ledger(gateway.redis_url, entry).held_nano
            second.gate.set()
            answer = await asked
            await settled(gateway, entry, COST_NANO)
    assert answer.headers["x-mmserve-model"] == "second@1"
    assert held == MOST_NANO


@pytest.mark.parametrize("slow", [False, True])
async def test_an_attempt_that_gave_way_to_another_is_billed_to_the_route_and_not_to_the_key(
    open_gateway: Opener, slow: bool
) -> None:
    key, route = budget(10 * MOST_NANO), budget(10 * MOST_NANO, Scope.ROUTE)
    script = words("late") if slow else begun_then_lost
    async with open_gateway() as gateway:
        await has_table(gateway, priced(("first", "second"), key, route, first_token_s=0.3 if slow else None))
        async with (
            engine(gateway, "first", script) as first,
            engine(gateway, "second", words("hello", "!")) as second,
        ):
            await all_ready(gateway, ("first", "second"))
            if slow:
                first.gate.clear()
            second.gate.clear()
            asked = asyncio.create_task(gateway.client.post("/v1/completions", BODY))
            await until(lambda: second.jobs)
            held = [ledger(gateway.redis_url, one) for one in (key, route)]
            second.gate.set()
            answer = await asked
            await settled(gateway, key, COST_NANO)
            await settled(gateway, route, COST_NANO + PROMPT_NANO)
            [lost] = [one for one in usage_records(gateway.redis_url) if not one.key]
            assert held_members(gateway.redis_url) == []
    # While the second one runs, what the first one cost is held of the route's budget, or charged already.
    assert [one.spent_nano + one.held_nano for one in held] == [MOST_NANO, MOST_NANO + PROMPT_NANO]
    assert answer.headers["x-mmserve-model"] == "second@1"
    assert answer.headers["x-mmserve-cost-usd"] == in_usd(COST_NANO)
    assert (lost.route, lost.served_id, lost.count) == (ROUTE, "first@1", 0)
    assert lost.cost_nano == lost.other_cost_nano == PROMPT_NANO


async def test_the_next_choice_is_refused_where_it_and_the_bill_of_the_last_one_are_too_much(
    open_gateway: Opener,
) -> None:
    route = budget(MOST_NANO + PROMPT_NANO - 1, Scope.ROUTE)
    async with open_gateway() as gateway:
        await has_table(gateway, priced(("first", "second"), route))
        async with (
            engine(gateway, "first", begun_then_lost),
            engine(gateway, "second", words("hello")) as second,
        ):
            await all_ready(gateway, ("first", "second"))
            answer = await gateway.client.post("/v1/completions", BODY)
            await settled(gateway, route, PROMPT_NANO)
            assert not second.jobs
    assert answer.status == 503
    assert "second@1: The route cannot pay" in answer.json()["error"]["message"]


async def test_a_client_that_leaves_does_not_pay_for_the_choice_that_was_given_up(
    open_gateway: Opener,
) -> None:
    key, route = budget(10 * MOST_NANO), budget(10 * MOST_NANO, Scope.ROUTE)
    async with open_gateway() as gateway:
        await has_table(gateway, priced(("first", "second"), key, route))
        async with (
            engine(gateway, "first", begun_then_lost),
            engine(gateway, "second", words("hello")) as second,
        ):
            await all_ready(gateway, ("first", "second"))
            second.pulling.clear()
            await asyncio.sleep(1.1)  # it gives up what it was waiting for
            async with gateway.client.begin("/v1/completions", BODY) as (_, _, left):
                await until(lambda: any(flight.attempt > 1 for flight in gateway.runtime.hub))
                await until(lambda: len(usage_records(gateway.redis_url)) == 1)
                left.set()
            await until(lambda: len(usage_records(gateway.redis_url)) == 2)
            await settled(gateway, key, 0)
            await settled(gateway, route, PROMPT_NANO)


async def test_a_choice_that_was_being_sent_when_its_client_left_is_taken_back(
    open_gateway: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = budget(10 * MOST_NANO)
    async with open_gateway() as gateway:
        await has_table(gateway, priced(("first", "second"), entry))
        admission = gateway.runtime.admission
        opening, opened = asyncio.Event(), asyncio.Event()
        admit = admission.admit

        async def with_a_ledger_to_open(*given: Any, **more: Any) -> Any:
            if more["replaces"]:
                with contextlib.closing(redis.Redis.from_url(gateway.redis_url)) as client:
                    client.hdel(LEDGERS_KEY, entry.place)
                monkeypatch.setattr(admission.ledgers, "_source", slow_source)
            return await admit(*given, **more)

        async def slow_source(_budget: BudgetEntry, _now: float) -> Spent:
            opening.set()
            await opened.wait()
            return Spent(0, "0-0")

        monkeypatch.setattr(admission, "admit", with_a_ledger_to_open)
        async with engine(gateway, "first", LOST), engine(gateway, "second", words("hello")) as second:
            await all_ready(gateway, ("first", "second"))
            second.pulling.clear()
            await asyncio.sleep(1.1)  # it gives up what it was waiting for
            async with gateway.client.begin("/v1/completions", BODY) as (_, task, left):
                await opening.wait()
                left.set()
                await task
            await until(lambda: usage_records(gateway.redis_url))
            opened.set()
            await until(lambda: not gateway.runtime.moving._tasks)
            await until(lambda: gateway.runtime._settler.idle)
            with contextlib.closing(redis.Redis.from_url(gateway.redis_url)) as client:
                assert client.llen(queue_key(queue_name("second", "normal"))) == 0
            assert held_members(gateway.redis_url) == []
            assert ledger(gateway.redis_url, entry).held_nano == 0
            second.pulling.set()
    assert not second.jobs


async def test_in_a_models_own_chain_nobodys_budget_pays_for_what_was_thrown_away(
    open_gateway: Opener,
) -> None:
    entry = budget(MOST_NANO)
    table = RoutingTable.build(
        revision=2,
        models=[
            ModelEntry(id="first", default="first@1", fallbacks=("second",)),
            ModelEntry(id="second", default="second@1"),
        ],
        versions=[
            VersionEntry(served_id=f"{name}@1", model=name, prices=PRICES) for name in ("first", "second")
        ],
        aliases={},
        deployments=[DeploymentEntry(id=name, served_id=f"{name}@1") for name in ("first", "second")],
        budgets=[entry],
    )
    async with open_gateway() as gateway:
        await has_table(gateway, table)
        async with engine(gateway, "first", begun_then_lost), engine(gateway, "second", words("hello", "!")):
            await all_ready(gateway, ("first", "second"))
            answer = await gateway.client.post("/v1/completions", {**BODY, "model": "first"})
            await settled(gateway, entry, COST_NANO)
            [lost] = [one for one in usage_records(gateway.redis_url) if not one.key]
    assert answer.headers["x-mmserve-model"] == "second@1"
    assert answer.headers["x-mmserve-cost-usd"] == in_usd(COST_NANO)
    assert (lost.route, lost.served_id, lost.cost_nano) == ("", "first@1", PROMPT_NANO)
