"""A shared beginning goes to one replica, and to another where that one is busy, draining, hung or dead."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from inference.protocol import beat_key, control_channel
from routing.core.records import DecisionRecord
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from tests.integration.gateway.client import Response
from tests.integration.gateway.conftest import Gateway, running_gateway
from tests.integration.gateway.waiting import until

STUB = "stub"  # the deployment that the stub workers serve
SHARED = "what many requests begin with, word for word; " * 30
FOREVER = 1_000_000


def table() -> RoutingTable:
    return RoutingTable.build(
        revision=2,
        models=[ModelEntry(id="stub", default="stub@1")],
        versions=[VersionEntry(served_id="stub@1", model="stub")],
        aliases={},
        deployments=[
            DeploymentEntry(
                id=STUB, served_id="stub@1", limits=Limits(queue_bound=500, default_deadline_s=60.0)
            )
        ],
    )


class Fleet:
    """A gateway, and stub workers of one deployment in processes of their own."""

    def __init__(self, gateway: Gateway, log: Path) -> None:
        self.gateway = gateway
        self.redis = redis.Redis.from_url(gateway.redis_url)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.number = 0
        self._log = log

    async def begin(self, *replicas: str, max_streams: int = 64) -> None:
        for replica in replicas:
            self._spawn(replica, max_streams)
        await until(lambda: len(self.gateway.runtime.live.ready(STUB)) == len(self.workers), 60.0)

    def _spawn(self, replica: str, max_streams: int) -> None:
        args = ["tests.integration.engine.stubs", self.gateway.redis_url, replica, str(max_streams)]
        with self._log.open("ab") as file:
            self.workers[replica] = subprocess.Popen(
                [sys.executable, "-m", *args], stdout=file, stderr=file, env=dict(os.environ)
            )

    def body(self, prompt: str, tokens: int = 1) -> dict[str, Any]:
        self.number += 1
        return {"model": "stub", "prompt": f"{prompt} {self.number}", "max_tokens": tokens}

    async def ask(self, prompt: str = SHARED, tokens: int = 1) -> str:
        """Have one answered; the replica that did."""
        answer = await self.gateway.client.post("/v1/completions", self.body(prompt, tokens))
        assert answer.status == 200, answer.body
        return self.server_of(answer)

    def server_of(self, answer: Response) -> str:
        job = answer.json()["id"].removeprefix("cmpl-")
        names = [self.redis.hget(f"rq:job:{job}-{attempt}", "worker_name") for attempt in (3, 2, 1)]
        return next(name for name in names if name).decode().partition("-")[0]

    async def explain(self, prompt: str = SHARED) -> Any:
        answer = await self.gateway.client.post("/v1/routing/explain", self.body(prompt))
        return answer.json()["replica"]

    def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()
            worker.wait(10)
        self.redis.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "workers.log"
    yield path
    print(path.read_text(errors="replace")[-6000:])


@contextlib.asynccontextmanager
async def fleet_of_two(url: str, log: Path, *, max_streams: int = 64, **config: Any) -> AsyncIterator[Fleet]:
    async with running_gateway(url, **config) as gateway:
        gateway.table = table()
        gateway.runtime.table.push(gateway.table.revision)
        await until(lambda: gateway.runtime.table.revision == gateway.table.revision)
        found = Fleet(gateway, log)
        try:
            await found.begin("r1", "r2", max_streams=max_streams)
            yield found
        finally:
            found.close()


@pytest.fixture
async def fleet(redis_url: str, log: Path) -> AsyncIterator[Fleet]:
    """Whoever is preferred is waited for longer than a test takes, as long as it can take more."""
    async with fleet_of_two(redis_url, log, affinity_wait_s=10.0, affinity_slack=8) as found:
        yield found


async def test_requests_that_share_a_beginning_go_to_one_replica(fleet: Fleet) -> None:
    first = await fleet.ask()
    assert [await fleet.ask() for _ in range(20)] == [first] * 20
    assert await fleet.explain() == {
        "preferred": first,
        "why": f"replica {first} has seen 5 of 5 blocks of the prompt",
    }
    other = await fleet.explain("something else, " * 100)
    assert other["preferred"] != first
    assert other["why"].startswith("no replica has seen")


async def test_a_crowd_with_one_beginning_is_shared_out_within_the_bound(fleet: Fleet) -> None:
    first = await fleet.ask()
    crowd = [asyncio.create_task(fleet.ask(tokens=1000)) for _ in range(48)]
    served = await asyncio.gather(*crowd)
    assert {*served} == {"r1", "r2"}
    # 1.25 times the mean and eight more.
    assert served.count(first) <= 1.25 * 24 + 8


async def test_a_full_replica_is_not_preferred(redis_url: str, log: Path) -> None:
    async with fleet_of_two(redis_url, log, max_streams=2, affinity_wait_s=10.0, affinity_slack=100) as fleet:
        client, hub = fleet.gateway.client, fleet.gateway.runtime.hub
        first = await fleet.ask()
        async with (
            client.begin("/v1/completions", fleet.body(SHARED, FOREVER)) as (_, _, one_left),
            client.begin("/v1/completions", fleet.body(SHARED, FOREVER)) as (_, _, two_left),
        ):
            await until(lambda: sum(flight.accepted for flight in hub) == 2)
            assert {flight.replica for flight in hub} == {first}
            found = await fleet.explain()
            assert found["preferred"] not in (first, None)
            assert "has 2 streams in hand, of 2 at most" in found["why"]
            assert await fleet.ask() == found["preferred"]
            one_left.set()
            two_left.set()


async def test_after_a_replica_was_killed_its_requests_are_answered_by_the_other(fleet: Fleet) -> None:
    first = await fleet.ask()
    fleet.workers[first].kill()
    # Nobody tells: the gateway prefers it until its beats are missed.
    assert (await fleet.explain())["preferred"] == first
    assert {await fleet.ask() for _ in range(3)} == {"r1", "r2"} - {first}
    # Its beat is gone before the gateway has looked for it.
    await until(lambda: len(fleet.gateway.runtime.live.ready(STUB)) == 1)
    assert await fleet.explain() is None, "one is left: there is no choice"


async def test_a_hung_replica_is_waited_for_no_longer_than_is_set(redis_url: str, log: Path) -> None:
    async with fleet_of_two(redis_url, log, affinity_wait_s=0.1) as fleet:
        first = await fleet.ask()
        fleet.workers[first].send_signal(signal.SIGSTOP)
        # Its last beat stays: only the wait can end.
        fleet.redis.persist(beat_key(first))
        assert (await fleet.explain())["preferred"] == first
        assert await fleet.ask() != first


async def test_a_draining_replica_gets_nothing_more(fleet: Fleet) -> None:
    first = await fleet.ask()
    async with fleet.gateway.client.begin("/v1/completions", fleet.body(SHARED, FOREVER)) as (_, _, left):
        await until(lambda: any(flight.accepted for flight in fleet.gateway.runtime.hub))
        await fleet.gateway.layer.send(control_channel(first), {"type": "engine.drain", "deadline_s": 30.0})
        await until(lambda: len(fleet.gateway.runtime.live.ready(STUB)) == 1)
        assert {await fleet.ask() for _ in range(5)} == {"r1", "r2"} - {first}
        left.set()


async def test_the_decision_says_which_replica_was_preferred_and_which_served(fleet: Fleet) -> None:
    first = await fleet.ask()
    answer = await fleet.gateway.client.post("/v1/completions", fleet.body(SHARED))
    key = f"mmserve:decision:{answer.headers['x-mmserve-decision']}"
    await until(lambda: fleet.redis.exists(key))
    record = msgspec.json.decode(fleet.redis.get(key), type=DecisionRecord)
    assert (record.preferred, record.replica) == (first, first)
    assert record.preferred_why.startswith(f"replica {first} has seen ")
