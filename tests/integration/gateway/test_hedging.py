"""Hedging with two engines that really race: who has the first token answers, and the other one is ended."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from inference.gateway.rqjob import queue_key
from inference.protocol import queue_name
from routing.core.assignment import ArmEntry, ExperimentEntry, deal
from routing.core.cost import HELD_KEY, LEDGERS_KEY, BudgetEntry, Ledger, Period, Prices, Scope
from routing.core.latency import TAIL_LEAST
from routing.core.records import USAGE_STREAM, DecisionRecord, Spent, UsageRecord, decision_key
from routing.core.route import CandidateEntry, Policy, RouteEntry
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from tests.integration.gateway.client import Response
from tests.integration.gateway.conftest import Gateway, Opener
from tests.integration.gateway.fake_engine import FakeEngine, Script, words
from tests.integration.gateway.test_fallback import BODY, LOST, both_ready, engine, fallbacks_of, has_table
from tests.integration.gateway.waiting import until

PRICES = Prices.of(per_million_input=Decimal(1), per_million_output=Decimal(2))
BUDGETS = [
    BudgetEntry(
        id=scope.value, name=scope.value, scope=scope, subject=subject, period=Period.TOTAL, limit_nano=10**12
    )
    for scope, subject in ((Scope.KEY, "k1"), (Scope.ROUTE, "either"))
]
LEARNING = TAIL_LEAST + 10  # requests until a tail is known of what was predicted


def hedged(
    share: float, experiments: Sequence[ExperimentEntry] = (), revision: int = 2, **route: Any
) -> RoutingTable:
    """A route over ``first`` and then ``second``, with prices, and budgets of the key and the route."""
    names = ("first", "second")
    return RoutingTable.build(
        revision=revision,
        experiments=experiments,
        models=[ModelEntry(id=name, default=f"{name}@1") for name in names],
        versions=[VersionEntry(served_id=f"{name}@1", model=name, prices=PRICES) for name in names],
        aliases={},
        deployments=[
            DeploymentEntry(id=name, served_id=f"{name}@1", limits=Limits(default_deadline_s=30.0))
            for name in names
        ],
        budgets=BUDGETS,
        routes=[
            RouteEntry(
                id="either",
                candidates=tuple(CandidateEntry(target=name) for name in names),
                policy=Policy.PRIORITY,
                hedge_share=share,
                **route,
            )
        ],
    )


class Race:
    """A gateway that has learned how soon ``first`` answers, and its two engines."""

    def __init__(self, gateway: Gateway, first: FakeEngine, second: FakeEngine) -> None:
        self.gateway, self.first, self.second = gateway, first, second
        self.redis = Redis.from_url(gateway.redis_url)

    async def learn(self) -> None:
        for _ in range(LEARNING):
            assert (await self.ask()).headers["x-mmserve-model"] == "first@1"
        # A tail of milliseconds is less than this process may be held up by another.
        experience = self.gateway.runtime.generator.experience
        learned = experience.slow_after_s

        def slow_after_s(deployment: str, expected_s: float) -> float | None:
            found = learned(deployment, expected_s)
            return None if found is None else max(found, 0.1)

        experience.slow_after_s = slow_after_s

    async def second_is(self, state: str) -> None:
        self.second.state = state
        await self.second.beat()
        loads = self.gateway.runtime.live.loads
        await until(lambda: ("second" in loads and loads["second"].ready > 0) == (state == "ready"))

    async def ask(self, **more: Any) -> Response:
        return await self.gateway.client.post("/v1/completions", {**BODY, **more})

    async def decision(self, answer: Response) -> DecisionRecord:
        async with asyncio.timeout(20):
            place = decision_key(answer.headers["x-mmserve-decision"])
            while (raw := await self.redis.get(place)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return msgspec.json.decode(raw, type=DecisionRecord)

    async def beside(self) -> list[UsageRecord]:
        """What was billed to the route alone."""
        found = await self.redis.xrange(USAGE_STREAM)
        records = [msgspec.json.decode(fields[b"record"], type=UsageRecord) for _, fields in found]
        return [record for record in records if not record.key]

    async def spent(self, budget: BudgetEntry) -> int:
        found = await self.redis.hget(LEDGERS_KEY, budget.place)
        return 0 if found is None else Ledger.read(found).spent_nano


def racing(open_gateway: Opener, share: float = 1.0, *, second: Script | None = None, **route: Any) -> Any:
    """``async with racing(open_gateway) as race``."""

    @contextlib.asynccontextmanager
    async def opened() -> Any:
        async with open_gateway(decisions_per_s=1000.0) as gateway:
            await has_table(gateway, hedged(share, **route))
            async with (
                engine(gateway, "first", words("one", "!")) as one,
                engine(gateway, "second", second or words("two", "!")) as two,
            ):
                await both_ready(gateway)
                race = Race(gateway, one, two)
                # A learning request that happens to be slow is not hedged.
                await race.second_is("draining")
                await race.learn()
                await race.second_is("ready")
                try:
                    yield race
                finally:
                    await race.redis.aclose()

    return opened()


async def test_the_second_attempt_answers_where_the_first_is_slow_and_the_first_is_ended(
    open_gateway: Opener,
) -> None:
    async with racing(open_gateway) as race:
        race.first.gate.clear()
        whole = await race.ask()
        streamed = await race.ask(stream=True)
        await race.first.until(lambda: len(race.first.cancelled) >= 2)
        kept = await race.decision(whole)
    assert whole.headers["x-mmserve-model"] == "second@1"
    assert whole.json()["choices"][0]["text"] == "two!"
    assert streamed.headers["x-mmserve-model"] == "second@1"
    assert b"two" in streamed.body
    assert b"one" not in streamed.body
    assert [(one.deployment, one.outcome) for one in kept.attempts] == [("first", "hedged")]
    assert (kept.deployment, kept.outcome) == ("second", "completed")


async def test_the_first_attempt_answers_where_it_has_the_first_token_after_all(open_gateway: Opener) -> None:
    async with racing(open_gateway) as race:
        race.first.gate.clear()
        race.second.gate.clear()
        asked = asyncio.create_task(race.ask())
        await race.second.until(lambda: bool(race.second.jobs))
        race.first.gate.set()
        answer = await asked
        await race.second.until(lambda: bool(race.second.cancelled))
        kept = await race.decision(answer)
    assert answer.headers["x-mmserve-model"] == "first@1"
    assert answer.json()["choices"][0]["text"] == "one!"
    assert [(one.deployment, one.outcome) for one in kept.attempts] == [("second", "hedged")]


async def test_the_loser_is_billed_to_the_route_and_not_to_the_key(open_gateway: Opener) -> None:
    async with racing(open_gateway) as race:
        key, route = BUDGETS
        await until_settled(race, LEARNING)
        before = (await race.spent(key), await race.spent(route))
        assert before[0] == before[1] > 0
        race.first.gate.clear()
        answer = await race.ask()
        await race.decision(answer)
        await until_settled(race, LEARNING + 2)
        [loser] = await race.beside()
        paid = (await race.spent(key) - before[0], await race.spent(route) - before[1])
        held = await race.redis.zcard(HELD_KEY)
    # Three tokens of a prompt, at a dollar a million.
    assert (loser.route, loser.served_id, loser.count, loser.cost_nano) == ("either", "first@1", 0, 3000)
    assert loser.other_cost_nano == 3000
    assert paid[1] - paid[0] == 3000
    assert paid[0] == 3000 + 2 * 2000
    assert held == 0


async def test_a_second_attempt_that_lost_while_it_was_being_sent_is_taken_back_and_billed_to_nobody(
    open_gateway: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with racing(open_gateway) as race:
        _, route = BUDGETS
        await until_settled(race, LEARNING)
        before = await race.spent(route)
        generator, ledgers = race.gateway.runtime.generator, race.gateway.runtime.admission.ledgers
        opening, opened = asyncio.Event(), asyncio.Event()
        send_beside = generator.send_beside

        async def with_a_ledger_to_open(*given: Any, **more: Any) -> None:
            await race.redis.hdel(LEDGERS_KEY, route.place)
            await send_beside(*given, **more)

        async def slow_source(_budget: BudgetEntry, _now: float) -> Spent:
            opening.set()
            await opened.wait()
            return Spent(before, "99999999999999-0")

        monkeypatch.setattr(generator, "send_beside", with_a_ledger_to_open)
        monkeypatch.setattr(ledgers, "_source", slow_source)
        race.second.pulling.clear()
        await asyncio.sleep(1.1)  # it gives up what it was waiting for
        race.first.gate.clear()
        asked = asyncio.create_task(race.ask())
        await opening.wait()
        race.first.gate.set()
        answer = await asked
        opened.set()
        await until_settled(race, LEARNING + 1)
        await until(lambda: not race.gateway.runtime.hedges._tasks)
        await until(lambda: race.gateway.runtime._settler.idle)
        assert await race.redis.llen(queue_key(queue_name("second", "normal"))) == 0
        assert await race.redis.zcard(HELD_KEY) == 0
        assert await race.beside() == []
        race.second.pulling.set()
    assert answer.headers["x-mmserve-model"] == "first@1"
    assert not race.second.jobs


async def until_settled(race: Race, records: int) -> None:
    async with asyncio.timeout(20):
        while await race.redis.xlen(USAGE_STREAM) < records:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_no_more_attempts_than_the_routes_share_of_its_requests(open_gateway: Opener) -> None:
    async with racing(open_gateway, share=0.25) as race:
        # What was saved up so far: a quarter for each request, and never more than ten.
        saved = int(min(10.0, 0.25 * LEARNING))
        race.first.gate.clear()
        for _ in range(saved):
            assert (await race.ask()).headers["x-mmserve-model"] == "second@1"
        asked = [asyncio.create_task(race.ask()) for _ in range(8)]
        await race.first.until(lambda: len(race.first.jobs) >= LEARNING + saved + 8)
        # Long past the time at which a second attempt would have been sent.
        await asyncio.sleep(0.5)
        hedges = len(race.second.jobs)
        race.first.gate.set()
        await asyncio.gather(*asked)
    most = 0.25 * (LEARNING + saved + 8)
    assert saved <= hedges <= most


async def test_without_a_share_nobody_is_asked_twice(open_gateway: Opener) -> None:
    async with racing(open_gateway, share=0.0) as race:
        race.first.gate.clear()
        asked = asyncio.create_task(race.ask())
        await race.first.until(lambda: len(race.first.jobs) > LEARNING)
        await asyncio.sleep(0.5)
        assert not race.second.jobs
        race.first.gate.set()
        assert (await asked).headers["x-mmserve-model"] == "first@1"


async def test_an_error_of_the_second_attempt_cannot_win(open_gateway: Opener) -> None:
    async with racing(open_gateway, second=LOST) as race:
        race.first.gate.clear()
        asked = asyncio.create_task(race.ask())
        await race.second.until(lambda: bool(race.second.jobs))
        flight = next(iter(race.gateway.runtime.hub))
        await until(lambda: len(race.gateway.runtime.hub) == 1)
        race.first.gate.set()
        answer = await asked
        kept = await race.decision(answer)
        assert await fallbacks_of(race.gateway, answer) == [0]
    assert flight.over
    assert answer.status == 200
    assert answer.headers["x-mmserve-model"] == "first@1"
    assert [(one.deployment, one.outcome) for one in kept.attempts] == [("second", "engine_lost")]


async def test_an_error_of_the_first_attempt_leaves_the_request_to_the_second(open_gateway: Opener) -> None:
    async with racing(open_gateway) as race:
        race.first.script = held_then_lost
        race.first.gate.clear()
        race.second.gate.clear()
        asked = asyncio.create_task(race.ask())
        await race.second.until(lambda: bool(race.second.jobs))
        race.first.gate.set()
        await until(
            lambda: any(f.deployment.id == "second" for f in race.gateway.runtime.hub if f.attempt > 1)
        )
        race.second.gate.set()
        answer = await asked
        kept = await race.decision(answer)
        assert await fallbacks_of(race.gateway, answer) == [1]
    assert answer.headers["x-mmserve-model"] == "second@1"
    assert len(race.second.jobs) == 1
    assert [(one.deployment, one.outcome) for one in kept.attempts] == [("first", "engine_lost")]


async def held_then_lost(engine: FakeEngine, job_id: str, request: Any) -> Any:
    await engine.gate.wait()
    yield [3, {"code": "engine_lost", "message": "gone", "param": None}]


async def test_a_client_that_leaves_ends_both_attempts(open_gateway: Opener) -> None:
    async with racing(open_gateway) as race:
        race.first.gate.clear()
        race.second.gate.clear()
        asked = asyncio.create_task(race.ask(stream=True))
        await race.second.until(lambda: bool(race.second.jobs))
        await until(lambda: all(flight.accepted for flight in race.gateway.runtime.hub))
        for flight in race.gateway.runtime.hub:
            flight.push([flight.job_id, -1, 103])
        await race.first.until(lambda: bool(race.first.cancelled))
        await race.second.until(lambda: bool(race.second.cancelled))
        await asked
        assert len(race.gateway.runtime.hub) == 0


async def test_a_second_attempt_goes_only_where_there_is_room(open_gateway: Opener) -> None:
    async with racing(open_gateway) as race:
        await race.second_is("draining")
        race.first.gate.clear()
        asked = asyncio.create_task(race.ask())
        await race.first.until(lambda: len(race.first.jobs) > LEARNING)
        await asyncio.sleep(0.5)
        assert not race.second.jobs
        race.first.gate.set()
        assert (await asked).headers["x-mmserve-model"] == "first@1"


@pytest.mark.parametrize("budgeted", [True, False])
async def test_no_budget_pays_for_a_dearer_answer_than_was_held_for(
    open_gateway: Opener, budgeted: bool
) -> None:
    async with racing(open_gateway) as race:
        table = hedged(1.0, revision=3)
        dearer = Prices.of(per_million_input=Decimal(1), per_million_output=Decimal(3))
        versions = {
            **table.versions,
            "second@1": dataclasses.replace(table.versions["second@1"], prices=dearer),
        }
        budgets = table.budgets if budgeted else {}
        await has_table(race.gateway, dataclasses.replace(table, versions=versions, budgets=budgets))
        race.first.gate.clear()
        asked = asyncio.create_task(race.ask(stream=True))
        await race.first.until(lambda: len(race.first.jobs) > LEARNING)
        if budgeted:
            await asyncio.sleep(0.5)  # long past the time at which a second attempt would have been sent
            assert not race.second.jobs
            race.first.gate.set()
        answer = await asked
    assert answer.headers["x-mmserve-model"] == ("first@1" if budgeted else "second@1")
    # A token and a byte of a prompt at a dollar a million, four tokens of an answer at two, or at three.
    assert answer.headers["x-mmserve-cost-estimate-usd"] == ("0.00001" if budgeted else "0.000014")


async def test_a_second_attempt_that_is_dearer_than_what_is_held_by_now_does_not_win(
    open_gateway: Opener,
) -> None:
    """The first attempt had no token in time, and its request has moved on to a cheaper choice."""
    async with racing(open_gateway) as race, engine(race.gateway, "third", words("three", "!")) as third:
        table = with_third(hedged(1.0, revision=3, first_token_s=1.0))
        await has_table(race.gateway, table)
        loads = race.gateway.runtime.live.loads
        await until(lambda: "third" in loads and loads["third"].ready > 0)
        for one in (race.first, race.second, third):
            one.gate.clear()
        asked = asyncio.create_task(race.ask())
        await race.second.until(lambda: bool(race.second.jobs))
        await third.until(lambda: bool(third.jobs))
        race.second.gate.set()
        await race.second.until(lambda: bool(race.second.cancelled))
        third.gate.set()
        answer = await asked
        kept = await race.decision(answer)
    assert answer.headers["x-mmserve-model"] == "third@1"
    assert answer.json()["choices"][0]["text"] == "three!"
    assert {one.deployment for one in kept.attempts} == {"first", "second"}


def with_third(table: RoutingTable) -> RoutingTable:
    """The same with a third candidate at half the price."""
    cheaper = Prices.of(per_million_input=Decimal("0.5"), per_million_output=Decimal(1))
    route = table.routes["either"]
    return RoutingTable.build(
        revision=table.revision,
        models=[*table.models.values(), ModelEntry(id="third", default="third@1")],
        versions=[
            *table.versions.values(),
            VersionEntry(served_id="third@1", model="third", prices=cheaper),
        ],
        aliases={},
        deployments=[
            *table.deployments.values(),
            DeploymentEntry(id="third", served_id="third@1", limits=Limits(default_deadline_s=30.0)),
        ],
        budgets=BUDGETS,
        routes=[dataclasses.replace(route, candidates=(*route.candidates, CandidateEntry(target="third")))],
    )


@contextlib.asynccontextmanager
async def one_more_replica(race: Race) -> AsyncIterator[FakeEngine]:
    """Of ``first``; it takes nothing before ``pulling`` is set."""
    more = engine(race.gateway, "first", words("one", " more"))
    more.pulling.clear()
    async with more:
        await until(lambda: len(race.gateway.runtime.live.ready("first")) == 2)
        yield more


@pytest.mark.parametrize("tells_late", [False, True])
async def test_another_replica_is_asked_before_another_version(
    open_gateway: Opener, tells_late: bool
) -> None:
    async with racing(open_gateway) as race, one_more_replica(race) as more:
        race.first.batch = tells_late  # an engine says that it has a job after the step that begins it
        before = await race.redis.xlen(USAGE_STREAM)
        race.first.gate.clear()
        race.first.takes = 1
        asked = asyncio.create_task(race.ask())
        await race.first.until(lambda: len(race.first.jobs) > LEARNING)
        more.pulling.set()
        answer = await asked
        kept = await race.decision(answer)
        await race.first.until(lambda: bool(race.first.cancelled))
        assert not race.second.jobs
        await until_settled(race, before + 2)
        [loser] = await race.beside()
    assert answer.json()["choices"][0]["text"] == "one more"
    assert answer.headers["x-mmserve-model"] == "first@1"
    assert kept.replica == more.replica
    assert [(one.replica, one.outcome) for one in kept.attempts] == [(race.first.replica, "hedged")]
    assert (loser.served_id, loser.prompt_tokens, loser.cost_nano) == ("first@1", 3, 3000)


def on_first(share: float) -> RoutingTable:
    """An experiment whose one arm is ``first``."""
    arm = ArmEntry(id=1, name="control", served_id="first@1")
    dealt = deal((), {1: 10_000})
    found = ExperimentEntry(
        id=1, name="e", targets=("either",), unit="request", salt=5, phase=1, arms=(arm,), deal=dealt
    )
    return hedged(share, experiments=[found], revision=3)


async def test_in_an_experiment_nobody_but_the_arms_own_replicas_is_asked(open_gateway: Opener) -> None:
    async with racing(open_gateway) as race:
        await has_table(race.gateway, on_first(1.0))
        race.first.gate.clear()
        alone = asyncio.create_task(race.ask())
        await race.first.until(lambda: len(race.first.jobs) > LEARNING)
        await asyncio.sleep(0.5)  # long past the time at which a second attempt would have been sent
        assert not race.second.jobs
        race.first.gate.set()
        assert (await alone).headers["x-mmserve-model"] == "first@1"
        async with one_more_replica(race) as more:
            race.first.gate.clear()
            race.first.takes = 1
            asked = asyncio.create_task(race.ask())
            await race.first.until(lambda: len(race.first.jobs) > LEARNING + 1)
            more.pulling.set()
            answer = await asked
            kept = await race.decision(answer)
            assert not race.second.jobs
    assert answer.json()["choices"][0]["text"] == "one more"
    assert kept.assignments == {"e": "control"}
    assert (kept.served_id, kept.replica) == ("first@1", more.replica)
