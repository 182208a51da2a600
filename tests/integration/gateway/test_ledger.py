"""Budgets: what is held, charged, refused, given back and opened again, on the real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from inference.gateway import ledger as ledger_module
from inference.gateway import runtime
from inference.gateway.admission import Admission, Refused
from inference.gateway.auth import KeyGrant
from inference.gateway.config import GatewayConfig
from inference.gateway.ledger import Reservation
from inference.gateway.redis_batch import RedisBatch
from inference.gateway.settling import Settler
from inference.gateway.tasks import cancel_all
from inference.protocol import DELTA, DONE, GenerateRequest, Sampling
from routing.core.cost import (
    HELD_KEY,
    LEDGERS_KEY,
    BudgetEntry,
    Ledger,
    Payers,
    Period,
    Prices,
    Scope,
    period_label,
)
from routing.core.records import USAGE_STREAM, Spent, UsageRecord
from routing.core.table import DeploymentEntry, Limits, RoutingTable
from tests.integration.gateway.conftest import KEY, Gateway, heard
from tests.integration.gateway.fake_engine import FakeEngine, failing, usage, words
from tests.integration.gateway.test_redis_restart import own_redis
from tests.integration.gateway.waiting import until

__all__ = ["own_redis"]

GRANT = KeyGrant(id="k1", name="tests", team="search", scopes=frozenset({"infer"}))
DEPLOYMENT = DeploymentEntry(id="echo", served_id="acme/echo@1", limits=Limits(queue_bound=100_000))
PRICES = Prices.of(per_million_input=Decimal(1), per_million_output=Decimal(2))
BODY = {"model": "acme/echo", "prompt": "say", "max_tokens": 10}
# One token and the three bytes of "say" at 1 dollar a million, ten tokens at 2.
MOST_NANO = 24_000
COST_NANO = 3 * 1_000 + 2 * 2_000


def budget(
    limit_nano: int, *, scope: Scope = Scope.KEY, subject: str = "k1", period: Period = Period.MONTH
) -> BudgetEntry:
    return BudgetEntry(
        id=f"{scope}-{period}",
        name=f"budget of {scope} {subject}",
        scope=scope,
        subject=subject,
        period=period,
        limit_nano=limit_nano,
    )


def status_of(raw: bytes | None) -> dict[str, Any]:
    """A ledger as values."""
    return (Ledger("", 0, 0) if raw is None else Ledger.read(raw))._asdict()


class Door:
    """Admission alone, as one gateway process has it."""

    def __init__(self, url: str, **config: Any) -> None:
        self.redis = Redis.from_url(url, max_connections=16)
        self.fast = RedisBatch(self.redis, timeout_s=30)
        self.spent = Spent(0, "0-0")
        self.config = GatewayConfig(redis_url=url, **config)
        self.settler = Settler(self.redis, self.config)
        self.admission = Admission(
            self.redis,
            self.config,
            fast=self.fast,
            settler=self.settler,
            spend_source=self._spent,
        )
        self.number = 0

    async def _spent(self, budget: BudgetEntry, now: float) -> Spent:
        return self.spent

    async def admit(self, nano: int, *budgets: BudgetEntry) -> Reservation:
        self.number += 1
        request_id = f"{id(self)}-{self.number}"
        reservation = Reservation(f"{request_id}-1", nano, Payers(budgets))
        await self.admission.admit(
            GenerateRequest(
                request_id=request_id,
                reply_to="r",
                deadline=time.time() + 60,
                sampling=Sampling(),
                prompts=["x"],
            ),
            job_id=reservation.job_id,
            grant=GRANT,
            deployment=DEPLOYMENT,
            reserved_tokens=0,
            drain_per_s=1.0,
            now=time.time(),
            reservation=reservation,
        )
        return reservation

    def settle(self, reservation: Reservation, cost_nano: int) -> None:
        self.admission.settle(
            GRANT,
            record(cost_nano, request_id=reservation.job_id),
            reserved_tokens=0,
            used_tokens=0,
            reservations=[reservation],
        )

    async def ledger(self, entry: BudgetEntry) -> dict[str, Any]:
        return status_of(await self.redis.hget(LEDGERS_KEY, entry.place))

    async def settled(self, records: int) -> None:
        await until_async(lambda: self.redis.xlen(USAGE_STREAM), records)


def record(cost_nano: int, *, request_id: str = "r", at: float | None = None) -> UsageRecord:
    return UsageRecord(
        request_id=request_id, key="k1", team="search", route="smart", model="m", served_id="acme/echo@1",
        deployment="echo", endpoint="completions", outcome="completed", status=200, stream=False,
        at=time.time() if at is None else at, cost_nano=cost_nano,
    )  # fmt: skip


async def until_async(count: Any, wanted: int) -> None:
    async with asyncio.timeout(30):
        while await count() < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def door(url: str, **config: Any) -> AsyncIterator[Door]:
    found = Door(url, **config)
    tasks = [asyncio.create_task(found.fast.run()), asyncio.create_task(found.settler.run())]
    try:
        yield found
    finally:
        await cancel_all(tasks)
        await found.redis.aclose()


def budgeted(gateway: Gateway, *budgets: BudgetEntry, prices: Prices = PRICES) -> RoutingTable:
    """The table of the gateway's tests, with a price and budgets."""
    table = gateway.table_with(revision=2)
    versions = {key: dataclasses.replace(one, prices=prices) for key, one in table.versions.items()}
    limits: dict[tuple[str, str], tuple[BudgetEntry, ...]] = {}
    for one in budgets:
        limits[one.scope.value, one.subject] = (one,)
    return dataclasses.replace(table, versions=versions, budgets=limits)


async def with_table(gateway: Gateway, *budgets: BudgetEntry, **more: Any) -> None:
    gateway.table = budgeted(gateway, *budgets, **more)
    await gateway.runtime.table.look()
    await heard(gateway)


def ledger(redis_url: str, entry: BudgetEntry) -> dict[str, Any]:
    client = redis.Redis.from_url(redis_url)
    found = status_of(client.hget(LEDGERS_KEY, entry.place))
    client.close()
    return found


def records(redis_url: str) -> list[dict[str, Any]]:
    client = redis.Redis.from_url(redis_url)
    found = [json.loads(fields[b"record"]) for _, fields in client.xrange(USAGE_STREAM)]
    client.close()
    return found


async def test_a_thousand_at_once_never_spend_more_than_any_budget_has(redis_url):
    nano = 1_000_000
    limits = [
        budget(100 * nano + 999_999),
        budget(60 * nano, scope=Scope.TEAM, subject="search", period=Period.DAY),
        budget(200 * nano, scope=Scope.ROUTE, subject="smart", period=Period.TOTAL),
    ]
    async with door(redis_url) as one, door(redis_url) as other:
        found = await asyncio.gather(
            *[(one, other)[number % 2].admit(nano, *limits) for number in range(1000)], return_exceptions=True
        )
        admitted = [held for held in found if isinstance(held, Reservation)]
        refused = [error for error in found if isinstance(error, Refused)]
        assert (len(admitted), len(refused)) == (60, 940)
        assert {error.error.error_code for error in refused} == {"insufficient_quota"}
        for entry in limits:
            # Whoever is refused by one budget holds nothing of another.
            assert (await one.ledger(entry))["held_nano"] == 60 * nano
        for held in admitted:
            one.settle(held, nano // 2)
        await one.settled(60)
        for entry in limits:
            assert await one.ledger(entry) == {
                "period": period_label(entry.period, time.time()),
                "spent_nano": 30 * nano,
                "held_nano": 0,
            }
        more = await asyncio.gather(*[other.admit(nano, *limits) for _ in range(100)], return_exceptions=True)
    assert sum(isinstance(held, Reservation) for held in more) == 30


async def test_what_a_dead_gateway_held_comes_back_when_its_lease_ends(redis_url):
    entry, other = budget(1000), budget(5000, scope=Scope.TEAM, subject="search")
    async with door(redis_url) as gateway:
        await gateway.admit(800, entry, other)
        with pytest.raises(Refused):
            await gateway.admit(800, entry)
        (member,) = await gateway.redis.zrange(HELD_KEY, 0, -1)
        await gateway.redis.zadd(HELD_KEY, {member: time.time() - 1})
        await gateway.admit(800, entry)
        assert (await gateway.ledger(entry))["held_nano"] == 800
        assert (await gateway.ledger(other))["held_nano"] == 0


async def test_a_ledger_that_alone_was_lost_is_opened_with_what_is_held_of_it(redis_url):
    entry, other = budget(1000), budget(5000, scope=Scope.TEAM, subject="search")
    async with door(redis_url) as gateway:
        first = await gateway.admit(100, entry, other)
        await gateway.admit(50, other)
        await gateway.redis.hdel(LEDGERS_KEY, entry.place)
        await gateway.admit(10, entry, other)
        assert (await gateway.ledger(entry))["held_nano"] == 110
        gateway.settle(first, 7)
        await gateway.settled(1)
        for one, held in ((entry, 10), (other, 60)):
            found = await gateway.ledger(one)
            assert (found["spent_nano"], found["held_nano"]) == (7, held)


async def test_a_request_in_flight_keeps_its_hold_and_takes_it_again_in_a_new_redis(redis_url):
    entry = budget(1000)
    async with door(redis_url) as gateway:
        reservation = await gateway.admit(800, entry)
        await gateway.redis.zadd(HELD_KEY, {reservation.member: time.time() + 1})
        await gateway.admission.ledgers.renew([reservation], 30)
        assert await gateway.redis.zscore(HELD_KEY, reservation.member) > time.time() + 20
        await gateway.redis.delete(HELD_KEY)
        period = period_label(entry.period, time.time())
        await gateway.redis.hset(LEDGERS_KEY, entry.place, Ledger(period, 0, 0).written())
        await gateway.admission.ledgers.renew([reservation], 30)
        assert (await gateway.ledger(entry))["held_nano"] == 800


async def test_a_lost_ledger_is_opened_from_the_rows_and_what_the_stream_still_holds(redis_url):
    entry = budget(10_000)
    async with door(redis_url) as gateway:
        month_ago = time.time() - 40 * 86_400
        rolled = await gateway.redis.xadd(USAGE_STREAM, {"record": msgspec.json.encode(record(3000))})
        for one in (record(500), record(7, at=month_ago), msgspec.structs.replace(record(900), key="other")):
            await gateway.redis.xadd(USAGE_STREAM, {"record": msgspec.json.encode(one)})
        gateway.spent = Spent(3000, rolled.decode())
        await asyncio.gather(*[gateway.admit(100, entry) for _ in range(50)])
        assert await gateway.ledger(entry) == {
            "period": period_label(Period.MONTH, time.time()),
            "spent_nano": 3500,
            "held_nano": 5000,
        }


async def test_what_a_gateway_settled_before_it_heard_of_a_budget_is_counted_from_its_record(
    redis_url, monkeypatch
):
    monkeypatch.setattr(ledger_module, "LOOK_AGAIN_S", 2.0)
    entry = budget(10_000)
    async with door(redis_url) as gateway:
        gateway.settle(await gateway.admit(100, entry), 60)
        held = await gateway.admit(100, entry)
        await gateway.redis.xadd(USAGE_STREAM, {"record": msgspec.json.encode(record(500))})
        async with asyncio.timeout(30):
            while (found := await gateway.ledger(entry))["spent_nano"] < 560:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert found["held_nano"] == 100
        gateway.settle(held, 40)
        await gateway.settled(3)
        assert ((found := await gateway.ledger(entry))["spent_nano"], found["held_nano"]) == (600, 0)


async def test_a_database_that_is_away_stops_only_what_has_to_ask_it(redis_url):
    async with door(redis_url) as gateway:

        async def away(entry: BudgetEntry, now: float) -> Spent:
            raise OSError("connection refused")

        gateway.admission.ledgers._source = away
        with pytest.raises(Exception, match="budget of key k1 has spent cannot be read"):
            await gateway.admit(1, budget(10))
        await gateway.admit(1)


async def test_a_redis_that_is_full_is_told_again_once_it_has_room(redis_url, caplog):
    entry = budget(10_000)
    async with door(redis_url) as gateway:
        reservations = [await gateway.admit(100, entry) for _ in range(3)]
        await gateway.redis.config_set("maxmemory", "1")
        try:
            for reservation in reservations:
                gateway.settle(reservation, 60)
            await until(lambda: gateway.settler.refused > 0)
        finally:
            await gateway.redis.config_set("maxmemory", "0")
        await gateway.settled(3)
        found = await gateway.ledger(entry)
    assert (found["spent_nano"], found["held_nano"]) == (180, 0)
    assert gateway.settler.lost == 0
    assert "maxmemory" in caplog.text


async def test_a_settlement_that_was_not_heard_is_sent_again_and_counts_once(redis_url):
    entry = budget(10_000)
    async with door(redis_url) as gateway:
        reservations = [await gateway.admit(100, entry) for _ in range(3)]
        execute, failures = gateway.redis.execute_command, []

        async def deaf(*command: Any) -> Any:
            answer = await execute(*command)
            if not failures:
                failures.append(command)
                raise RedisConnectionError("gone before the answer came")
            return answer

        gateway.settler._redis = SimpleNamespace(execute_command=deaf)
        for reservation in reservations:
            gateway.settle(reservation, 60)
        await gateway.settled(3)
        await until(lambda: gateway.settler.idle)
        found = await gateway.ledger(entry)
        assert (found["spent_nano"], found["held_nano"]) == (180, 0)
        assert await gateway.redis.xlen(USAGE_STREAM) == 3
        assert failures


async def test_a_new_period_begins_with_nothing_spent_and_a_clock_that_is_behind_does_not_begin_it_again(
    redis_url,
):
    entry = budget(1000, period=Period.DAY)
    async with door(redis_url) as gateway:
        await gateway.admit(10, entry)
        await gateway.redis.hset(LEDGERS_KEY, entry.place, Ledger("2020-01-01", 999, 10).written())
        await gateway.admit(10, entry)
        assert (await gateway.ledger(entry))["spent_nano"] == 0
        await gateway.redis.hset(LEDGERS_KEY, entry.place, Ledger("2999-01-01", 995, 20).written())
        with pytest.raises(Refused):
            await gateway.admit(10, entry)


async def test_a_full_stream_turns_records_away_and_says_how_many(redis_url):
    async with door(redis_url, usage_maxlen=2) as gateway:
        for _ in range(5):
            gateway.settle(await gateway.admit(0), 1)
        await until_async(lambda: gateway.redis.exists("mmserve:usage:lost"), 1)
        await until(lambda: gateway.settler.idle)
        assert await gateway.redis.xlen(USAGE_STREAM) == 2


async def test_the_answer_says_what_it_cost_and_the_budget_is_charged_with_that(open_gateway):
    entry = budget(1_000_000)
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("a", "b")),
    ):
        await with_table(gateway, entry)
        response = await gateway.client.post("/v1/completions", BODY)
        (found,) = await until(lambda: records(gateway.redis_url))
        charged = ledger(gateway.redis_url, entry)
    assert response.headers["x-mmserve-cost-usd"] == "0.000007"
    assert found["cost_nano"] == COST_NANO == charged["spent_nano"]
    assert charged["held_nano"] == 0


async def test_the_device_hour_is_paid_by_the_share_of_it_that_the_engine_tells(open_gateway):
    async def half_a_second(
        engine: FakeEngine, job_id: str, request: GenerateRequest
    ) -> AsyncIterator[list[Any]]:
        yield [DELTA, 0, "Hi", [1], None, "stop", None]
        yield [DONE, {**usage(3, 1), "engine_s": 0.5}]

    entry = budget(10**12)
    async with open_gateway() as gateway, FakeEngine(gateway.redis_url, gateway.layer, script=half_a_second):
        # A cent a second.
        await with_table(gateway, entry, prices=Prices.of(per_device_hour=Decimal(36)))
        response = await gateway.client.post("/v1/completions", BODY)
        await until(lambda: records(gateway.redis_url))
        charged = ledger(gateway.redis_url, entry)
        gateway.table = budgeted(gateway, budget(10), prices=Prices.of(per_device_hour=Decimal(36)))
        gateway.table = dataclasses.replace(gateway.table, revision=3)
        await gateway.runtime.table.look()
        refused = await gateway.client.post("/v1/completions", BODY)
    assert response.headers["x-mmserve-cost-usd"] == "0.005"
    assert (charged["spent_nano"], charged["held_nano"]) == (5_000_000, 0)
    assert refused.status == 429


async def test_a_stream_names_the_most_it_may_cost_and_its_usage_the_final_cost(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("a", "b")),
    ):
        await with_table(gateway)
        plain = await gateway.client.post("/v1/completions", {**BODY, "stream": True})
        asked = await gateway.client.post(
            "/v1/completions", {**BODY, "stream": True, "stream_options": {"include_usage": True}}
        )
    assert plain.headers["x-mmserve-cost-estimate-usd"] == "0.000024"
    assert "x-mmserve-cost-usd" not in plain.headers
    assert "cost_usd" not in plain.body.decode()
    assert asked.events()[-2]["usage"]["cost_usd"] == "0.000007"


@pytest.mark.parametrize("scope", list(Scope)[:2])
async def test_a_budget_that_cannot_pay_refuses_by_name_and_says_not_to_retry(open_gateway, scope):
    subject = {Scope.KEY: "k1", Scope.TEAM: "search"}[scope]
    entry = budget(MOST_NANO + 5000, scope=scope, subject=subject)
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("a", "b")),
    ):
        gateway.keys.grants[KEY] = msgspec.structs.replace(gateway.keys.grants[KEY], team="search")
        await with_table(gateway, entry)
        first = await gateway.client.post("/v1/completions", BODY)
        await until(lambda: ledger(gateway.redis_url, entry)["spent_nano"])
        refused = await gateway.client.post("/v1/completions", BODY)
        smaller = await gateway.client.post("/v1/completions", {**BODY, "max_tokens": 2})
    error = refused.json()["error"]
    assert (first.status, refused.status, smaller.status) == (200, 429, 200)
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert error["message"] == (
        f"The budget of {scope} {subject} cannot pay: this request may cost up to $0.000024, and $0.000022 of "
        "$0.000029 is left. A smaller max_tokens costs less. It begins anew on the 1st, UTC."
    )


async def test_a_client_that_leaves_pays_for_what_was_made(open_gateway):
    entry = budget(1_000_000)
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("a", "b", "c")) as engine,
    ):
        await with_table(gateway, entry)
        sent = asyncio.Event()
        engine.lose = lambda message: any(event[2] == 1 and event[4] == "c" for event in message["events"])
        async with gateway.client.begin("/v1/completions", {**BODY, "stream": True}) as (response, _, left):
            await response.until(b'"b"')
            sent.set()
            left.set()
        (found,) = await until(lambda: records(gateway.redis_url))
        charged = ledger(gateway.redis_url, entry)
    assert found["outcome"] == "cancelled"
    assert found["cost_nano"] == COST_NANO == charged["spent_nano"]
    assert charged["held_nano"] == 0


async def test_a_failure_of_ours_costs_nothing_and_gives_back_what_was_held(open_gateway):
    entry = budget(1_000_000)
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=failing("internal_error", "it broke")),
    ):
        await with_table(gateway, entry)
        response = await gateway.client.post("/v1/completions", BODY)
        (found,) = await until(lambda: records(gateway.redis_url))
        charged = ledger(gateway.redis_url, entry)
    assert response.status == 500
    assert found.get("cost_nano", 0) == charged["spent_nano"] == charged["held_nano"] == 0


async def test_a_redis_that_comes_back_empty_still_knows_what_was_spent(own_redis, open_gateway_at):
    entry = budget(MOST_NANO + COST_NANO)
    async with (
        open_gateway_at(own_redis.url) as gateway,
        FakeEngine(own_redis.url, gateway.layer, script=words("a", "b")),
    ):
        await with_table(gateway, entry)
        assert (await gateway.client.post("/v1/completions", BODY)).status == 200
        await until(lambda: records(own_redis.url))

        async def rolled_up(entry: BudgetEntry, now: float) -> Spent:
            return Spent(COST_NANO, "0-1")

        gateway.runtime.admission.ledgers._source = rolled_up
        own_redis.kill()
        await asyncio.to_thread(own_redis.start)
        second = await gateway.client.post("/v1/completions", BODY)
        await until(lambda: ledger(own_redis.url, entry)["spent_nano"] == 2 * COST_NANO)
        third = await gateway.client.post("/v1/completions", BODY)
    assert (second.status, third.status) == (200, 429)


async def test_what_is_in_flight_is_held_from_the_first_moment_of_a_new_redis_on(own_redis, open_gateway_at):
    entry = budget(2 * MOST_NANO - 1)
    async with (
        open_gateway_at(own_redis.url) as gateway,
        FakeEngine(own_redis.url, gateway.layer, script=words("a", "b")) as engine,
    ):
        await with_table(gateway, entry)
        engine.gate.clear()
        first = asyncio.create_task(gateway.client.post("/v1/completions", BODY))
        await until(lambda: ledger(own_redis.url, entry)["held_nano"] == MOST_NANO)
        own_redis.kill()
        await asyncio.to_thread(own_redis.start)
        second = await gateway.client.post("/v1/completions", BODY)
        held = ledger(own_redis.url, entry)["held_nano"]
        engine.gate.set()
        answered = await first
        await until(lambda: ledger(own_redis.url, entry)["held_nano"] == 0)
    assert second.status == 429
    assert held == MOST_NANO
    assert answered.status == 200


async def test_what_is_in_flight_is_held_again_as_soon_as_redis_is_found_to_have_forgotten(
    own_redis, open_gateway_at, monkeypatch
):
    monkeypatch.setattr(runtime, "RENEW_LEASES_S", 3600.0)
    entry = budget(10 * MOST_NANO)
    async with (
        open_gateway_at(own_redis.url) as gateway,
        FakeEngine(own_redis.url, gateway.layer, script=words("a", "b")) as engine,
    ):
        await with_table(gateway, entry)
        engine.gate.clear()
        first = asyncio.create_task(gateway.client.post("/v1/completions", BODY))
        await until(lambda: ledger(own_redis.url, entry)["held_nano"] == MOST_NANO)
        own_redis.kill()
        await asyncio.to_thread(own_redis.start)
        client = redis.Redis.from_url(own_redis.url)
        await until(lambda: client.zcard(HELD_KEY) == 1)
        client.close()
        engine.gate.set()
        assert (await first).status == 200


async def test_what_is_asked_for_is_not_held_before_it_is_admitted(redis_url):
    entry = budget(1000)
    async with door(redis_url) as gateway:
        asked: list[Reservation] = []
        gateway.admission.ledgers.in_flight = lambda: asked
        # As in a gateway: what a request asks for is known to belong to it before it is admitted.
        asked.append(Reservation(f"{id(gateway)}-1-1", 800, Payers([entry])))
        await gateway.admit(800, entry)
        assert (await gateway.ledger(entry))["held_nano"] == 800
        await gateway.admission.ledgers.renew(asked, 30)
        assert (await gateway.ledger(entry))["held_nano"] == 800


async def test_a_refusal_is_counted_once_a_second_and_not_one_record_each(open_gateway):
    entry = budget(1)
    async with open_gateway() as gateway, FakeEngine(gateway.redis_url, gateway.layer, script=words("a")):
        await with_table(gateway, entry)
        answers = await asyncio.gather(*[gateway.client.post("/v1/completions", BODY) for _ in range(8)])
        await until(lambda: sum(one.get("count", 1) for one in records(gateway.redis_url)) == 8)
        found = records(gateway.redis_url)
    assert {answer.status for answer in answers} == {429}
    assert len(found) <= 3
    assert {one["outcome"] for one in found} == {"insufficient_quota"}


async def test_a_router_is_told_what_is_left_of_the_tightest_budget_for_a_second(redis_url):
    roomy = budget(5_000, period=Period.DAY)
    tight = budget(1_000)
    async with door(redis_url) as gateway:
        left = gateway.admission.left
        assert left.tightest([roomy, tight], time.monotonic()) is None
        await gateway.admit(400, roomy, tight)
        assert left.tightest([roomy, tight], time.monotonic()) == (tight, 600)
        with pytest.raises(Refused):
            await gateway.admit(700, roomy, tight)
        assert left.tightest([tight], time.monotonic()) == (tight, 600)
        assert left.tightest([roomy, tight], time.monotonic() + 2) is None


async def test_a_budget_that_is_made_while_a_request_runs_pays_for_it(open_gateway):
    entry = budget(1_000_000)
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("a", "b")) as engine,
    ):
        await with_table(gateway)
        engine.gate.clear()
        async with gateway.client.begin("/v1/completions", BODY) as (_, task, _):
            await engine.until(lambda: bool(engine.jobs))
            gateway.table = dataclasses.replace(budgeted(gateway, entry), revision=3)
            await gateway.runtime.table.look()
            await gateway.runtime.admission.ledgers.open(entry)
            engine.gate.set()
            await task
        await until(lambda: ledger(gateway.redis_url, entry)["spent_nano"])
        charged = ledger(gateway.redis_url, entry)
    assert (charged["spent_nano"], charged["held_nano"]) == (COST_NANO, 0)


async def test_a_limit_that_changed_in_between_charges_the_ledger_once(redis_url):
    before, after = budget(10_000), budget(20_000)
    async with door(redis_url) as gateway:
        held = await gateway.admit(500, before)
        gateway.admission.settle(
            GRANT,
            record(300),
            reserved_tokens=0,
            used_tokens=0,
            reservations=[held, Reservation(held.job_id, 0, Payers([after]))],
        )
        await gateway.settled(1)
        found = await gateway.ledger(after)
        assert (found["spent_nano"], found["held_nano"]) == (300, 0)
