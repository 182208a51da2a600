"""A model's fallbacks: who stands in for it, after what, and for whom not."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from routing.core.assignment import BUCKETS, ArmEntry, ExperimentEntry
from routing.core.breaker import LEAST
from routing.core.cost import BudgetEntry, Period, Prices, Scope
from routing.core.route import CandidateEntry, Cause, Policy, RouteEntry
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from tests.integration.gateway.conftest import KEY, Gateway, Opener
from tests.integration.gateway.fake_engine import Script, failing, words
from tests.integration.gateway.test_fallback import LOST, all_ready, both_ready, engine, has_table, two
from tests.integration.gateway.waiting import until

BODY: dict[str, Any] = {"model": "first", "prompt": "x", "max_tokens": 4}
ALL = frozenset(Cause)
PATH = "/v1/completions"
SHORT = failing("context_length_exceeded", "700 tokens, 512 fit", "prompt")


def chained(
    *,
    fallbacks: tuple[str, ...] = ("second",),
    first: dict[str, Any] | None = None,
    prices: dict[str, int] | None = None,
    **more: Any,
) -> RoutingTable:
    """``first`` with these fallbacks (and rules), ``second`` and ``third`` without any."""
    names = ("first", "second", "third")
    rules = {name: more.pop(name) for name in ("fallback_on", "first_token_s") if name in more}
    bounds = Limits(queue_bound=2, default_deadline_s=30.0)
    return RoutingTable.build(
        revision=2,
        models=[
            ModelEntry(id="first", default="first@1", fallbacks=fallbacks, **rules),
            *(ModelEntry(id=name, default=f"{name}@1") for name in names[1:]),
        ],
        versions=[
            VersionEntry(
                served_id=f"{name}@1",
                model=name,
                prices=Prices.of(per_million_output=Decimal((prices or {}).get(name, 0))),
            )
            for name in names
        ],
        aliases={"first@stable": "first@1"},
        deployments=[
            DeploymentEntry(
                id=name, served_id=f"{name}@1", limits=bounds, **((first or {}) if name == "first" else {})
            )
            for name in names
        ],
        **more,
    )


async def break_it(gateway: Gateway, model: str) -> None:
    """Open the breaker of a model whose engine fails, by asking for its version."""
    for _ in range(LEAST):
        await gateway.client.post(PATH, {**BODY, "model": f"{model}@1"})


@pytest.mark.parametrize("script", [LOST, SHORT])
@pytest.mark.parametrize("model", ["first", "first@stable"])
async def test_an_error_and_a_prompt_that_is_too_long_go_to_the_fallback(
    open_gateway: Opener, script: Script, model: str
) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained())
        async with engine(gateway, "first", script), engine(gateway, "second", words("hello")):
            await both_ready(gateway)
            answer = await gateway.client.post(PATH, {**BODY, "model": model})
    assert answer.status == 200
    assert answer.headers["x-mmserve-model"] == "second@1"


@pytest.mark.parametrize(
    ("table", "more"),
    [
        (chained(fallback_on=ALL - {Cause.ERROR}), {}),
        (chained(), {"mmserve": {"no_fallback": True}}),
        (chained(), {"model": "first@1"}),
    ],
)
async def test_a_forbidden_cause_a_wish_and_a_version_by_its_id_go_nowhere_else(
    open_gateway: Opener, table: RoutingTable, more: dict[str, Any]
) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, table)
        async with engine(gateway, "first", LOST), engine(gateway, "second", words("hello")) as second:
            await both_ready(gateway)
            answer = await gateway.client.post(PATH, {**BODY, **more})
    assert answer.status == 503
    assert answer.json()["error"]["code"] == "engine_lost"
    assert not second.jobs


async def test_a_clients_own_mistake_is_the_models_answer(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained())
        wrong = failing("invalid_value", "seed is too large", "seed")
        async with engine(gateway, "first", wrong), engine(gateway, "second", words("hello")) as second:
            await both_ready(gateway)
            answer = await gateway.client.post(PATH, BODY)
    assert (answer.status, answer.json()["error"]["param"]) == (400, "seed")
    assert not second.jobs


async def test_without_a_first_token_in_time_the_fallback_answers(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained(first_token_s=0.3))
        async with engine(gateway, "first", words("late")) as first, engine(gateway, "second", words("soon")):
            await both_ready(gateway)
            first.gate.clear()
            answer = await gateway.client.post(PATH, {**BODY, "stream": True})
            await first.until(lambda: bool(first.cancelled))
    assert answer.status == 200
    assert b"soon" in answer.body
    assert b"late" not in answer.body


async def test_a_full_queue_goes_to_the_fallback(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained())
        async with engine(gateway, "first", words("one")) as first, engine(gateway, "second", words("two")):
            await both_ready(gateway)
            first.pulling.clear()
            answers = [asyncio.create_task(gateway.client.post(PATH, BODY)) for _ in range(4)]
            await until(lambda: sum(task.done() for task in answers) >= 1)
            first.pulling.set()
            found = [await task for task in answers]
    assert [one.status for one in found] == [200] * 4
    assert {one.headers["x-mmserve-model"] for one in found} == {"first@1", "second@1"}


async def test_where_a_budget_cannot_pay_for_the_model_a_cheaper_one_answers(open_gateway: Opener) -> None:
    budget = BudgetEntry(
        id="b", name="pocket money", scope=Scope.KEY, subject="k1", period=Period.TOTAL, limit_nano=1_000_000
    )
    async with open_gateway() as gateway:
        await has_table(gateway, chained(prices={"first": 900, "second": 1}, budgets=[budget]))
        async with engine(gateway, "first", words("dear")), engine(gateway, "second", words("cheap")):
            await both_ready(gateway)
            body = {**BODY, "max_tokens": 100}
            # Refused by the ledger, then by what was heard of it.
            found = [await gateway.client.post(PATH, body) for _ in range(2)]
            nobody = await gateway.client.post(PATH, {**body, "model": "first@1"})
    assert [one.headers.get("x-mmserve-model") for one in found] == ["second@1"] * 2
    assert (nobody.status, nobody.json()["error"]["code"]) == (429, "insufficient_quota")


async def test_an_open_breaker_leads_to_the_fallback_and_is_explained(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained())
        async with engine(gateway, "first", LOST) as first, engine(gateway, "second", words("hello")):
            await both_ready(gateway)
            await break_it(gateway, "first")
            tried = len(first.jobs)
            explained = (await gateway.client.post("/v1/routing/explain", BODY)).json()
            answer = await gateway.client.post(PATH, BODY)
            assert len(first.jobs) == tried
    assert answer.headers["x-mmserve-model"] == "second@1"
    assert (explained["chosen"], explained["route"], explained["policy"]) == ("second", None, "priority")
    assert [one["reasons"] for one in explained["candidates"]] == [["its circuit breaker is open"], []]


async def test_a_model_that_forbids_the_breaker_as_a_cause_refuses(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained(fallback_on=ALL - {Cause.BREAKER}))
        async with engine(gateway, "first", LOST), engine(gateway, "second", words("hello")) as second:
            await both_ready(gateway)
            await break_it(gateway, "first")
            answer = await gateway.client.post(PATH, BODY)
            assert not second.jobs
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["error"]["message"] == "first@1 cannot serve this: its circuit breaker is open."


async def test_a_route_that_forbids_the_breaker_as_a_cause_refuses(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, two(fallback_on=ALL - {Cause.BREAKER}))
        async with engine(gateway, "first", LOST), engine(gateway, "second", words("hello")) as second:
            await both_ready(gateway)
            body = {**BODY, "model": "either"}
            # Another cause goes on as ever.
            assert (await gateway.client.post(PATH, body)).headers["x-mmserve-model"] == "second@1"
            await break_it(gateway, "first")
            served = len(second.jobs)
            answer = await gateway.client.post(PATH, body)
            explained = (await gateway.client.post("/v1/routing/explain", body)).json()
            assert len(second.jobs) == served
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert (
        answer.json()["error"]["message"]
        == "No candidate of 'either' can serve this. first: its circuit breaker is open."
    )
    assert explained["chosen"] is None
    assert explained["candidates"][1]["reasons"] == [
        "nobody takes the place of first, whose circuit breaker is open"
    ]


@pytest.mark.parametrize(
    ("allowed", "status", "served"),
    [(("first", "third"), 200, "third@1"), (("second",), 403, None), (("first",), 503, None)],
)
async def test_a_key_reaches_only_those_fallbacks_that_it_may_use(
    open_gateway: Opener, allowed: tuple[str, ...], status: int, served: str | None
) -> None:
    async with open_gateway() as gateway:
        gateway.keys.grants[KEY] = msgspec.structs.replace(gateway.keys.grants[KEY], allowed_models=allowed)
        await has_table(gateway, chained(fallbacks=("second", "third")))
        async with (
            engine(gateway, "first", LOST),
            engine(gateway, "second", words("hello")) as second,
            engine(gateway, "third", words("hello")),
        ):
            await all_ready(gateway, ("first", "second", "third"))
            answer = await gateway.client.post(PATH, BODY)
            assert not second.jobs
    assert (answer.status, answer.headers.get("x-mmserve-model")) == (status, served)
    if status == 403:
        assert answer.json()["error"]["code"] == "model_not_allowed"


async def test_a_model_that_sleeps_is_waited_for_while_its_fallback_is_up(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained(first={"load_s": 5.0}))
        async with engine(gateway, "second", words("hello")) as second:
            await all_ready(gateway, ("second",))
            asked = asyncio.create_task(gateway.client.post(PATH, BODY))
            await until(lambda: len(gateway.runtime.hub) == 1)
            async with engine(gateway, "first", words("awake")):
                answer = await asked
            assert not second.jobs
    assert answer.headers["x-mmserve-model"] == "first@1"


async def test_a_model_that_sleeps_for_longer_than_a_first_token_may_take_is_not(
    open_gateway: Opener,
) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained(first={"load_s": 5.0}, first_token_s=0.3))
        async with engine(gateway, "second", words("hello")):
            await all_ready(gateway, ("second",))
            answer = await gateway.client.post(PATH, BODY)
    assert answer.headers["x-mmserve-model"] == "second@1"


@pytest.mark.parametrize(("rules", "status"), [({}, 200), ({"fallback_on": ALL - {Cause.ERROR}}, 503)])
async def test_a_model_that_was_unloaded_counts_as_an_error(
    open_gateway: Opener, rules: dict[str, Any], status: int
) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained(first={"wanted_replicas": 0}, **rules))
        async with engine(gateway, "second", words("hello")):
            await all_ready(gateway, ("second",))
            answer = await gateway.client.post(PATH, BODY)
    assert answer.status == status
    if status != 200:
        assert "first@1 is not loaded" in answer.json()["error"]["message"]


async def test_a_fallback_that_is_gone_is_a_problem_and_not_an_error(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained(fallbacks=("gone", "second")))
        async with engine(gateway, "first", LOST), engine(gateway, "second", words("hello")):
            await both_ready(gateway)
            answer = await gateway.client.post(PATH, BODY)
            explained = (await gateway.client.post("/v1/routing/explain", BODY)).json()
    assert answer.headers["x-mmserve-model"] == "second@1"
    assert explained["problems"] == ["The model 'gone' does not exist."]


async def test_when_all_is_spent_one_error_names_each_attempt(open_gateway: Opener) -> None:
    async with open_gateway() as gateway:
        await has_table(gateway, chained())
        other = failing("internal_error", "it has burnt down")
        async with engine(gateway, "first", LOST), engine(gateway, "second", other):
            await both_ready(gateway)
            answer = await gateway.client.post(PATH, BODY)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (503, "all_attempts_failed")
    assert "first@1: the engine is out of order" in error["message"]
    assert "second@1: it has burnt down" in error["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_a_chain_does_not_go_on_with_its_fallbacks_own(open_gateway: Opener) -> None:
    found = chained()
    second = ModelEntry(id="second", default="second@1", fallbacks=("third",))
    nested = RoutingTable.build(
        revision=2,
        models=[found.models["first"], second, found.models["third"]],
        versions=found.versions.values(),
        aliases=found.aliases,
        deployments=found.deployments.values(),
        routes=[
            RouteEntry(id="either", candidates=(CandidateEntry(target="second"),), policy=Policy.PRIORITY)
        ],
    )
    async with open_gateway() as gateway:
        await has_table(gateway, nested)
        async with (
            engine(gateway, "first", LOST),
            engine(gateway, "second", LOST),
            engine(gateway, "third", words("hello")) as third,
        ):
            await all_ready(gateway, ("first", "second", "third"))
            answers = [
                await gateway.client.post(PATH, {**BODY, "model": model}) for model in ("first", "either")
            ]
            assert not third.jobs
    assert [one.status for one in answers] == [503, 503]


async def test_an_experiments_arm_has_the_models_chain_behind_it(open_gateway: Opener) -> None:
    experiment = ExperimentEntry(
        id=1, name="speed", targets=("first",), unit="key", salt=7, phase=1,
        arms=(ArmEntry(id=1, name="new", served_id="third@1"),), deal=((0, 1), (BUCKETS, None)),
    )  # fmt: skip
    async with open_gateway() as gateway:
        await has_table(gateway, chained(experiments=[experiment]))
        async with (
            engine(gateway, "first", LOST),
            engine(gateway, "second", words("hello")),
            engine(gateway, "third", words("new")) as third,
        ):
            await all_ready(gateway, ("first", "second", "third"))
            arm = await gateway.client.post(PATH, BODY)
            third.script = LOST
            after = await gateway.client.post(PATH, BODY)
    assert arm.headers["x-mmserve-model"] == "third@1"
    assert after.headers["x-mmserve-model"] == "second@1"
