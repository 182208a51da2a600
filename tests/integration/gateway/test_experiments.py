"""Experiments on the hot path: who is served by which version, and what is written down of it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import redis

from routing.core.assignment import ArmEntry, ExperimentEntry, deal
from routing.core.cost import BudgetEntry, Period, Prices, Scope
from routing.core.records import USAGE_STREAM, UsageRecord, shadow_key
from routing.core.route import CandidateEntry, Constraints, RouteEntry
from routing.core.table import DeploymentEntry, ModelEntry, RoutingTable, VersionEntry
from routing.experiments.settle import outcome_of
from tests.integration.gateway.conftest import KEY, Gateway, Opener, heard
from tests.integration.gateway.fake_engine import FakeEngine, failing, words
from tests.integration.gateway.waiting import until

BODY: dict[str, Any] = {"model": "acme/echo", "prompt": "say", "max_tokens": 8}
DECLINED = "I'm sorry, but I can't help with that."


def experiment(**fields: Any) -> ExperimentEntry:
    arms = (
        ArmEntry(id=1, name="control", served_id="acme/echo@1"),
        ArmEntry(id=2, name="new", served_id="acme/echo@2"),
    )
    given: dict[str, Any] = {
        "id": 1, "name": "faster", "targets": ("acme/echo",), "unit": "user", "salt": 5, "phase": 3, "arms": arms,
        "deal": deal((), {1: 0, 2: 10_000}),
    }  # fmt: skip
    return ExperimentEntry(**(given | fields))


def table(*experiments: ExperimentEntry, deployed: bool = True) -> RoutingTable:
    """``echo`` serves both versions' names, so that one scripted engine answers for either."""
    deployments = [DeploymentEntry(id="echo", served_id="acme/echo@2" if deployed else "acme/echo@1")]
    if deployed:
        deployments.append(DeploymentEntry(id="other", served_id="acme/echo@1"))
    return RoutingTable.build(
        revision=1,
        models=[ModelEntry(id="acme/echo", default="acme/echo@1")],
        versions=[
            VersionEntry(served_id="acme/echo@1", model="acme/echo"),
            VersionEntry(served_id="acme/echo@2", model="acme/echo"),
        ],
        aliases={},
        deployments=deployments,
        experiments=experiments,
    )


async def records(gateway: Gateway, count: int) -> list[UsageRecord]:
    client = redis.Redis.from_url(gateway.redis_url)
    await until(lambda: client.xlen(USAGE_STREAM) >= count)
    found: Any = client.xrange(USAGE_STREAM)
    client.close()
    return [msgspec.json.decode(fields[b"record"], type=UsageRecord) for _, fields in found]


async def test_an_arms_version_serves_and_the_record_names_experiment_arm_and_hashed_unit(open_gateway):
    async with open_gateway() as gateway, FakeEngine(gateway.redis_url, gateway.layer, script=words("Hi")):
        gateway.runtime.table._table = table(experiment())
        await heard(gateway)
        answer = await gateway.client.post("/v1/completions", {**BODY, "user": "ada@example.org"})
        again = await gateway.client.post("/v1/completions", {**BODY, "user": "ada@example.org"})
        first, second = await records(gateway, 2)
    assert answer.status == again.status == 200, answer.body
    assert answer.headers["x-mmserve-model"] == "acme/echo@2"
    assert first.assignments == {"faster": "new"}
    phase, _, unit = first.units["faster"].partition(".")
    assert phase == "3"
    assert len(unit) == 16
    assert first.units == second.units
    assert first.request_id == answer.headers["x-mmserve-decision"]
    assert "ada@" not in msgspec.json.encode(first).decode()


async def test_the_session_header_is_a_unit_and_a_request_without_it_is_in_no_experiment(open_gateway):
    async with open_gateway() as gateway, FakeEngine(gateway.redis_url, gateway.layer, script=words("Hi")):
        gateway.runtime.table._table = table(experiment(unit="session"), deployed=False)
        await heard(gateway)
        await gateway.client.post("/v1/completions", BODY, headers={"x-mmserve-session": "s-1"})
        await gateway.client.post("/v1/completions", BODY)
        with_session, without = await records(gateway, 2)
    assert with_session.assignments == {"faster": "new"}
    assert without.assignments == {}


async def test_metadata_and_language_are_what_filters_look_at(open_gateway):
    wanted = {"tags": frozenset({"tier=gold"}), "language": frozenset({"de"})}
    async with open_gateway() as gateway, FakeEngine(gateway.redis_url, gateway.layer, script=words("Hi")):
        gateway.runtime.table._table = table(experiment(unit="key", filters=wanted))
        await heard(gateway)
        body = {**BODY, "metadata": {"tier": "gold", "other": "x"}}
        german = {"content-language": "de-AT"}
        inside = await gateway.client.post("/v1/completions", body, headers=german)
        await records(gateway, 1)
        assert inside.headers["x-mmserve-model"] == "acme/echo@2"
        for other, headers in ((body, {}), (BODY, german)):
            explained = await gateway.client.post("/v1/routing/explain", other, headers=headers)
            assert explained.json()["assignments"] == []
        explained = await gateway.client.post("/v1/routing/explain", body, headers=german)
        assert explained.json()["assignments"] == [{"experiment": "faster", "arm": "new"}]


async def test_an_arm_that_nothing_serves_falls_back_and_the_unit_stays_in_it(open_gateway):
    async with open_gateway() as gateway, FakeEngine(gateway.redis_url, gateway.layer, script=words("Hi")):
        gateway.runtime.table._table = table(experiment(), deployed=False)
        await heard(gateway)
        answer = await gateway.client.post("/v1/completions", {**BODY, "user": "ada"})
        (record,) = await records(gateway, 1)
    assert answer.status == 200, answer.body
    assert answer.headers["x-mmserve-model"] == "acme/echo@1"
    assert record.assignments == {"faster": "new"}
    assert record.served_id == "acme/echo@1"


async def test_a_request_that_nobody_serves_is_the_arms_failure(open_gateway):
    async with open_gateway() as gateway:
        nobody = DeploymentEntry(id="echo", served_id="acme/echo@2", wanted_replicas=0)
        gateway.runtime.table._table = RoutingTable.build(
            revision=1,
            models=[ModelEntry(id="acme/echo", default="acme/echo@2")],
            versions=[VersionEntry(served_id="acme/echo@2", model="acme/echo")],
            aliases={},
            deployments=[nobody],
            experiments=[experiment()],
        )
        answer = await gateway.client.post("/v1/completions", {**BODY, "user": "ada"})
        (record,) = await records(gateway, 1)
    assert answer.status == 503
    assert (record.status, record.outcome, record.assignments) == (503, "model_not_loaded", {"faster": "new"})


@pytest.mark.parametrize("dear", [False, True])
async def test_a_budget_that_cannot_pay_the_price_of_an_arm_is_that_arms_failure(
    open_gateway: Opener, dear: bool
) -> None:
    """Else the dearer arm would lose exactly the requests that it was too dear for, and nobody would see it."""
    found = table(experiment(deal=deal((), {1: 0 if dear else 10_000, 2: 10_000 if dear else 0})))
    dollars = {"acme/echo@1": Decimal(1), "acme/echo@2": Decimal(10)}
    versions = {
        key: dataclasses.replace(one, prices=Prices.of(per_million_output=dollars[key]))
        for key, one in found.versions.items()
    }
    # Eight tokens: 8,000 nano-dollars of the one, 80,000 of the other.
    limit = BudgetEntry(
        id="b", name="budget", scope=Scope.KEY, subject="k1", period=Period.TOTAL, limit_nano=9_000
    )
    budgets = {(Scope.KEY.value, "k1"): (limit,)}
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("Hi")),
        FakeEngine(gateway.redis_url, gateway.layer, deployment="other", script=words("Hi")),
    ):
        gateway.runtime.table._table = dataclasses.replace(found, versions=versions, budgets=budgets)
        loads = gateway.runtime.live.loads
        await until(lambda: all(name in loads and loads[name].ready for name in ("echo", "other")))
        answer = await gateway.client.post("/v1/completions", {**BODY, "user": "ada"})
        (record,) = await records(gateway, 1)
        # By now this process has heard what is left: nobody is moved out of the arm for it.
        again = await gateway.client.post("/v1/completions", {**BODY, "user": "ada"})
        later = (await records(gateway, 2))[1]
    assert answer.status == (429 if dear else 200), answer.body
    assert record.assignments == {"faster": "new" if dear else "control"}
    assert record.units["faster"].startswith("3.")
    assert again.status == answer.status
    assert later.assignments == record.assignments
    counted = outcome_of(record, 1)
    assert (counted.failed, counted.succeeded) == (dear, not dear)


async def test_a_budget_that_is_used_up_is_no_arms_failure(open_gateway: Opener) -> None:
    found = table(experiment())
    limit = BudgetEntry(
        id="b", name="budget", scope=Scope.KEY, subject="k1", period=Period.TOTAL, limit_nano=0
    )
    prices = Prices.of(per_million_output=Decimal(1))
    versions = {key: dataclasses.replace(one, prices=prices) for key, one in found.versions.items()}
    budgets = {(Scope.KEY.value, "k1"): (limit,)}
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("Hi")),
        FakeEngine(gateway.redis_url, gateway.layer, deployment="other", script=words("Hi")),
    ):
        gateway.runtime.table._table = dataclasses.replace(found, versions=versions, budgets=budgets)
        loads = gateway.runtime.live.loads
        await until(lambda: all(name in loads and loads[name].ready for name in ("echo", "other")))
        for _ in range(2):
            answer = await gateway.client.post("/v1/completions", {**BODY, "user": "ada"})
            assert (answer.status, answer.json()["error"]["code"]) == (429, "insufficient_quota")
        gateway.runtime.generator.flush_refusals()
        (record,) = await records(gateway, 1)
    assert (record.count, record.outcome, record.assignments) == (2, "insufficient_quota", {})


async def test_an_answer_that_declines_is_marked_in_experiments_only(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(
            gateway.redis_url, gateway.layer, script=words(*(f"{word} " for word in DECLINED.split()))
        ),
    ):
        gateway.runtime.table._table = table(experiment(), deployed=False)
        await heard(gateway)
        await gateway.client.post("/v1/completions", {**BODY, "user": "ada"})
        await gateway.client.post("/v1/completions", BODY)
        inside, outside = await records(gateway, 2)
    assert inside.assignments
    assert inside.refusal
    assert not outside.refusal


def shadow(**fields: Any) -> ExperimentEntry:
    """Every request is copied to ``new``; a budget of a million tokens a day."""
    return experiment(**({"shadow": True, "control": "control", "tokens_per_day": 1_000_000} | fields))


async def test_a_shadows_copy_goes_to_the_arm_and_the_client_gets_the_original(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("copy"), deployment="echo"),
        FakeEngine(
            gateway.redis_url, gateway.layer, script=words("original"), deployment="other"
        ) as original,
    ):
        gateway.runtime.table._table = table(shadow())
        await until(lambda: len([1 for load in gateway.runtime.live.loads.values() if load.ready]) == 2)
        original.gate.clear()
        asked = asyncio.create_task(gateway.client.post("/v1/completions", {**BODY, "user": "ada"}))
        (copy,) = await records(gateway, 1)  # the copy is done while the original still waits
        original.gate.set()
        answer = await asked
        found = {one.key: one for one in await records(gateway, 2)}
        client = redis.Redis.from_url(gateway.redis_url)
        await until(lambda: len(client.keys("mmserve:shadow:faster:*")) == 1)
        client.close()
    assert answer.json()["choices"][0]["text"] == "original"
    assert answer.headers["x-mmserve-model"] == "acme/echo@1"
    assert copy.key == "shadow"
    assert copy.served_id == "acme/echo@2"
    assert copy.assignments == {"faster": "new"}
    assert found["k1"].assignments == {"faster": "control"}
    assert found["k1"].units == copy.units


async def test_a_shadow_copies_nothing_without_room_budget_or_a_replica(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("copy"), deployment="echo"),
        FakeEngine(gateway.redis_url, gateway.layer, script=words("original"), deployment="other"),
    ):
        gateway.runtime.table._table = table(shadow(tokens_per_day=5))
        await until(lambda: len([1 for load in gateway.runtime.live.loads.values() if load.ready]) == 2)
        client = redis.Redis.from_url(gateway.redis_url)
        client.set(shadow_key("faster", time.time()), 5)
        await gateway.client.post("/v1/completions", {**BODY, "user": "ada"})
        gateway.runtime.table._table = table(shadow(), deployed=False)  # the arm's version has no deployment
        await gateway.client.post("/v1/completions", {**BODY, "user": "ada"})
        found = await records(gateway, 2)
        client.close()
        await until(lambda: not gateway.runtime.mirror._tasks)
    assert [one.key for one in found] == ["k1", "k1"]
    assert not any(one.assignments for one in found)


async def test_a_shadow_copies_nothing_while_its_replica_is_half_full(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("copy"), deployment="echo") as arm,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("original"), deployment="other"),
    ):
        gateway.runtime.table._table = table(shadow())
        loads = gateway.runtime.live.loads
        await until(lambda: len([1 for load in loads.values() if load.ready]) == 2)
        arm.busy = 32
        await until(lambda: loads["echo"].running == 32)
        await gateway.client.post("/v1/completions", {**BODY, "user": "ada"})
        arm.busy = 31
        await until(lambda: loads["echo"].running == 31)
        await gateway.client.post("/v1/completions", {**BODY, "user": "ada"})
        found = await records(gateway, 3)
    assert sorted(one.key for one in found) == ["k1", "k1", "shadow"]


def on_a_route(**route: Any) -> RoutingTable:
    """Who asks for ``either`` is in the arm ``new``, which ``other`` serves; the route itself knows ``echo`` alone."""
    return RoutingTable.build(
        revision=1,
        models=[ModelEntry(id="acme/echo", default="acme/echo@1")],
        versions=[
            VersionEntry(served_id="acme/echo@1", model="acme/echo", tags=frozenset({"region=eu"})),
            VersionEntry(served_id="acme/echo@2", model="acme/echo"),
        ],
        aliases={},
        deployments=[
            DeploymentEntry(id="echo", served_id="acme/echo@1"),
            DeploymentEntry(id="other", served_id="acme/echo@2"),
        ],
        routes=[RouteEntry(id="either", candidates=(CandidateEntry(target="acme/echo@1"),), **route)],
        experiments=[experiment(targets=("either",))],
    )


async def test_an_arm_of_a_route_counts_for_the_route_and_may_be_used_by_who_may_use_the_route(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, deployment="other", script=words("Hi")),
    ):
        gateway.runtime.table._table = on_a_route()
        key = gateway.keys.grants[KEY]
        gateway.keys.grants[KEY] = msgspec.structs.replace(key, allowed_models=("either",))
        await until(lambda: "other" in gateway.runtime.live.loads)
        answer = await gateway.client.post("/v1/completions", {**BODY, "model": "either", "user": "ada"})
        [record] = await records(gateway, 1)
    assert answer.status == 200, answer.body
    assert answer.headers["x-mmserve-model"] == "acme/echo@2"
    assert (record.route, record.assignments) == ("either", {"faster": "new"})


async def test_an_arm_that_fails_goes_on_along_its_routes_chain_and_the_unit_stays_in_it(open_gateway):
    broken = failing("engine_lost", "the engine is out of order")
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, deployment="other", script=broken),
        FakeEngine(gateway.redis_url, gateway.layer, script=words("Hi")),
    ):
        gateway.runtime.table._table = on_a_route()
        await until(lambda: {"echo", "other"} <= set(gateway.runtime.live.loads))
        body = {**BODY, "model": "either", "user": "ada"}
        answer = await gateway.client.post("/v1/completions", body)
        [record] = await records(gateway, 1)
        strict = {**body, "mmserve": {"no_fallback": True}}
        refused = await gateway.client.post("/v1/completions", strict)
    assert answer.status == 200, answer.body
    assert answer.headers["x-mmserve-model"] == "acme/echo@1"
    assert record.assignments == {"faster": "new"}
    assert (record.served_id, record.fallbacks) == ("acme/echo@1", 1)
    assert refused.status == 503
    assert b"out of order" in refused.body


async def test_an_arm_that_its_routes_constraints_rule_out_is_not_used(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, deployment="other", script=words("no")),
        FakeEngine(gateway.redis_url, gateway.layer, script=words("Hi")),
    ):
        gateway.runtime.table._table = on_a_route(constraints=Constraints(require=("region=eu",)))
        await until(lambda: {"echo", "other"} <= set(gateway.runtime.live.loads))
        body = {**BODY, "model": "either", "user": "ada"}
        answer = await gateway.client.post("/v1/completions", body)
        [record] = await records(gateway, 1)
    assert answer.headers["x-mmserve-model"] == "acme/echo@1"
    assert (record.fallbacks, record.assignments) == (0, {"faster": "new"})
