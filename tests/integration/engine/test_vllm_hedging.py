"""Hedging between two real replicas of one deployment, one of which stands still in the middle of a prompt."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from inference.engine import rqkeys
from inference.protocol import EngineOptions, ReplicaSpec
from routing.core.assignment import ArmEntry, ExperimentEntry, deal
from routing.core.cost import HELD_KEY, BudgetEntry, Period, Prices, Scope
from routing.core.latency import LEAST, TAIL_LEAST
from routing.core.records import USAGE_STREAM, DecisionRecord, UsageRecord, decision_key
from routing.core.route import CandidateEntry, RouteEntry
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from tests.integration.engine.conftest import vllm_engine
from tests.integration.gateway.client import Response
from tests.integration.gateway.conftest import Gateway, running_gateway
from tests.integration.gateway.waiting import until

pytestmark = pytest.mark.vllm

ROUTE, SERVED, DEPLOYMENT = "twice", "smol@1", "smol"
REPLICAS = ("left", "right")
BUDGETS = [
    BudgetEntry(
        id=scope.value, name=scope.value, scope=scope, subject=subject, period=Period.TOTAL, limit_nano=10**12
    )
    for scope, subject in ((Scope.KEY, "k1"), (Scope.ROUTE, ROUTE))
]
LONG = 600  # words, and about as many tokens: long enough to stop an engine before its first token
WORDS = "river stone light market garden letter window morning captain engine forest silver kitchen winter"


@pytest.fixture(scope="module")
def engines(
    vllm_redis: str, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Two replicas, by name."""
    logs = tmp_path_factory.mktemp("hedging")
    options = EngineOptions(context_length=1024, max_streams=8, kv_cache_bytes=128 * 2**20)
    with contextlib.ExitStack() as stack:
        found = {}
        for name in REPLICAS:
            log = logs / f"{name}.log"
            spec = ReplicaSpec(
                replica=name,
                deployment=DEPLOYMENT,
                served_id=SERVED,
                model_path=str(smollm2),
                redis_url=vllm_redis,
                options=options,
                log_path=str(log),
            )
            found[name] = stack.enter_context(vllm_engine(spec, log))
        yield found


def table(revision: int = 2, **more: Any) -> RoutingTable:
    """A route over the one version, whose every request may be asked twice."""
    prices = Prices.of(per_million_input=Decimal(1), per_million_output=Decimal(2))
    return RoutingTable.build(
        revision=revision,
        models=[ModelEntry(id="smol", default=SERVED)],
        versions=[VersionEntry(served_id=SERVED, model="smol", prices=prices)],
        aliases={},
        deployments=[
            DeploymentEntry(id=DEPLOYMENT, served_id=SERVED, limits=Limits(default_deadline_s=120.0))
        ],
        budgets=BUDGETS,
        routes=[RouteEntry(id=ROUTE, candidates=(CandidateEntry(target="smol"),), hedge_share=1.0)],
        **more,
    )


EXPERIMENT = ExperimentEntry(
    id=1,
    name="same",
    targets=(ROUTE,),
    unit="request",
    salt=5,
    phase=1,
    arms=(ArmEntry(id=1, name="control", served_id=SERVED),),
    deal=deal((), {1: 10_000}),
)


class Pair:
    """A gateway that has learned how soon the two answer."""

    def __init__(self, gateway: Gateway, engines: dict[str, subprocess.Popen[bytes]], client: Redis) -> None:
        self.gateway, self.engines, self.redis = gateway, engines, client
        self.number = 0

    async def ask(self, words: int, **more: Any) -> Response:
        """A prompt that nobody has seen before."""
        self.number += 1
        vocabulary = WORDS.split()
        drawn = [vocabulary[(self.number * 7 + at * at) % len(vocabulary)] for at in range(words)]
        prompt = " ".join([f"Number {self.number}:", *drawn])
        body = {"model": ROUTE, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        answer = await self.gateway.client.post("/v1/completions", {**body, **more})
        assert answer.status == 200, answer.body
        return answer

    async def learn(self) -> None:
        for _ in range(LEAST + TAIL_LEAST + 2):
            await self.ask(LONG)

    async def decision(self, answer: Response) -> DecisionRecord:
        place = decision_key(answer.headers["x-mmserve-decision"])
        async with asyncio.timeout(20):
            while (raw := await self.redis.get(place)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return msgspec.json.decode(raw, type=DecisionRecord)

    async def beside(self) -> list[UsageRecord]:
        found = await self.redis.xrange(USAGE_STREAM)
        records = [msgspec.json.decode(fields[b"record"], type=UsageRecord) for _, fields in found]
        return [record for record in records if not record.key]

    async def slow(self, **more: Any) -> tuple[str, Response]:
        """Have one answered while the replica that has its prompt stands still; that one's name."""
        asked = asyncio.create_task(self.ask(LONG, **more))
        await until(lambda: len(self.gateway.runtime.hub) == 1)
        [flight] = self.gateway.runtime.hub
        async with asyncio.timeout(20):
            while not (name := await self.gateway.runtime.generator.holder_of(flight)):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        self.engines[name].send_signal(signal.SIGSTOP)
        try:
            return name, await asked
        finally:
            self.engines[name].send_signal(signal.SIGCONT)

    async def idle(self) -> None:
        """Until no engine runs anything, and no queue holds anything."""
        ready = self.gateway.runtime.live.ready

        def nothing_runs() -> bool:
            beats = ready(DEPLOYMENT)
            return len(beats) == 2 and not any(beat.running or beat.waiting for beat in beats)

        await until(nothing_runs, 60.0)
        assert not len(self.gateway.runtime.hub)
        queues = rqkeys.deployment_queues(DEPLOYMENT)
        # A beat from before the engine stood still says nothing of what it took up since.
        async with asyncio.timeout(60):
            while any([await self.redis.zcard(rqkeys.wip_key(queue)) for queue in queues]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for queue in queues:
            assert await self.redis.llen(rqkeys.queue_key(queue)) == 0

    async def nothing_held(self) -> None:
        """Until no budget holds anything for a request."""
        async with asyncio.timeout(20):
            while await self.redis.zcard(HELD_KEY):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def hedged_once(self, **more: Any) -> None:
        """One more request, checked: answered by the other replica, the slow one ended and billed to the route."""
        await self.idle()
        before = len(await self.beside())
        slow, answer = await self.slow(**more)
        kept = await self.decision(answer)
        await self.idle()
        async with asyncio.timeout(20):
            while len(losers := await self.beside()) == before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert answer.headers["x-mmserve-model"] == SERVED
        assert (kept.replica, kept.outcome) == (({*REPLICAS} - {slow}).pop(), "completed")
        assert [(one.replica, one.outcome) for one in kept.attempts] == [(slow, "hedged")]
        experiments = self.gateway.table.experiments
        assert kept.assignments == ({"same": "control"} if experiments else {})
        loser = losers[-1]
        assert (loser.route, loser.served_id, loser.count) == (ROUTE, SERVED, 0)
        assert loser.prompt_tokens > LONG
        assert loser.cost_nano == loser.other_cost_nano > 0
        await self.nothing_held()


@contextlib.asynccontextmanager
async def pair(
    redis_url: str, engines: dict[str, subprocess.Popen[bytes]], known: RoutingTable
) -> AsyncIterator[Pair]:
    async with (
        running_gateway(redis_url, decisions_per_s=1000.0) as gateway,
        Redis.from_url(redis_url) as client,
    ):
        gateway.table = known
        gateway.runtime.table.push(known.revision)
        await until(lambda: len(gateway.runtime.live.ready(DEPLOYMENT)) == 2, 150.0)
        await until(lambda: gateway.runtime.table.revision == known.revision)
        await client.delete(USAGE_STREAM)
        found = Pair(gateway, engines, client)
        await found.learn()
        yield found


async def test_the_other_replica_answers_and_the_slow_one_is_ended_and_billed_to_the_route(
    vllm_redis: str, engines: dict[str, subprocess.Popen[bytes]]
) -> None:
    async with pair(vllm_redis, engines, table()) as two:
        await two.hedged_once()
        await two.hedged_once(stream=True)
        # A unit of an experiment stays with its arm's version: another replica of it is the same.
        two.gateway.table = table(revision=3, experiments=[EXPERIMENT])
        two.gateway.runtime.table.push(3)
        await until(lambda: two.gateway.runtime.table.revision == 3)
        await two.hedged_once()
