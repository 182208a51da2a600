"""Every hard filter through the front door: whom it takes out, and the words that explain gives for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import REGISTRY

from inference.gateway.auth import KeyGrant
from routing.core.breaker import LEAST
from routing.core.cost import BudgetEntry, Period, Prices, Scope
from routing.core.live import Latency
from routing.core.route import CandidateEntry, Constraints, Policy, RouteEntry
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from tests.integration.gateway.conftest import Gateway, Opener
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.test_fallback import all_ready, has_table
from tests.integration.gateway.waiting import until

ROUTE = "best"
READY = ("fine", "mute", "plain", "us", "small", "dear", "barred", "open", "sluggish")
DOWN = ("off", "failed", "cold", "late", "nowhere")
ALL = frozenset({"completion", "chat", "json"})
CHAT: dict[str, Any] = {
    "model": ROUTE,
    "messages": [{"role": "user", "content": "say " * 20}],
    "max_tokens": 100,
    "response_format": {"type": "json_object"},
    "mmserve": {"max_cost_usd": 0.001, "max_ttft_ms": 2000},
}
# Who may use whatever begins with another letter than b, and so not the route by its name.
BOUND = KeyGrant(id="k9", name="bound", scopes=frozenset({"infer"}), allowed_models=("[!b]*",))


def table() -> RoutingTable:
    versions = [
        VersionEntry(
            served_id=f"{name}@1",
            model=name,
            capabilities=ALL - {"json"} if name == "plain" else ALL,
            tags=frozenset({"region=us" if name == "us" else "region=eu"}),
            prices=Prices.of(
                per_million_input=Decimal(1), per_million_output=Decimal(900 if name == "dear" else 1)
            ),
        )
        for name in (*READY, *DOWN)
    ]
    special: dict[str, dict[str, Any]] = {
        "mute": {"has_chat_template": False},
        "small": {"limits": Limits(context_length=128, default_deadline_s=30.0)},
        "off": {"wanted_replicas": 0},
        "failed": {"failure": "its files are damaged"},
        "cold": {"load_s": 20.0},
        "late": {"load_s": 500.0},
    }
    return RoutingTable.build(
        revision=2,
        models=[ModelEntry(id=one.model, default=one.served_id) for one in versions],
        versions=versions,
        aliases={},
        deployments=[
            DeploymentEntry(
                **{
                    "id": name,
                    "served_id": f"{name}@1",
                    "limits": Limits(context_length=4096, default_deadline_s=30.0),
                    **special.get(name, {}),
                }
            )
            for name in (*READY, *DOWN)
            if name != "nowhere"
        ],
        routes=[
            RouteEntry(
                id=ROUTE,
                policy=Policy.PRIORITY,
                candidates=tuple(CandidateEntry(target=name) for name in (*READY, *DOWN)),
                constraints=Constraints(require=("region=eu",), max_tpot_s=0.2),
            )
        ],
    )


@pytest.fixture
def crowd(open_gateway: Opener) -> Any:
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Gateway]:
        async with open_gateway() as gateway, contextlib.AsyncExitStack() as stack:
            gateway.keys.grants["mm-bound"] = BOUND
            await has_table(gateway, table())
            for name in READY:
                engine = FakeEngine(gateway.redis_url, gateway.layer, deployment=name, script=words("ok"))
                await stack.enter_async_context(engine)
            await all_ready(gateway, READY)
            gateway.client.key = "mm-bound"
            await reasons(gateway, CHAT)
            experience = gateway.runtime.generator.experience
            for _ in range(LEAST):
                experience.failed("open", time.monotonic())
            gateway.runtime.live.learn(
                "sluggish",
                Latency(base_s=0.01, per_waiting_s=0.0, per_token_s=0.0, tpot_s=0.5, tpot_per_running_s=0.0),
            )
            yield gateway

    return opened


async def reasons(gateway: Gateway, body: dict[str, Any]) -> dict[str, list[str]]:
    found = (await gateway.client.post("/v1/routing/explain", body)).json()
    return {one["id"]: one["reasons"] for one in found["candidates"]}


async def test_each_filter_has_its_reason_in_words(crowd: Any) -> None:
    async with crowd() as gateway:
        found = await reasons(gateway, CHAT)
        answer = await gateway.client.post("/v1/chat/completions", CHAT)
    assert answer.headers["x-mmserve-model"] == "fine@1"
    assert found.pop("fine") == []
    [small] = found.pop("small")
    assert small.startswith("may need up to ")
    assert small.endswith(" tokens of context, has 128")
    [dear] = found.pop("dear")
    assert dear.startswith("costs about $0.09")
    assert dear.endswith("the ceiling is $0.001")
    [cold] = found.pop("cold")
    assert cold.startswith("predicted TTFT 20")
    assert cold.endswith("the ceiling is 2000 ms")
    late, too_late = found.pop("late")
    assert late == "it is not up, and is expected in 500 s: longer than this request may take (30 s)"
    assert too_late.endswith("the ceiling is 2000 ms")
    for name in ("off", "failed"):
        assert found[name].pop() == "predicted TTFT 60000 ms, the ceiling is 2000 ms"
    assert found == {
        "mute": ["the model has no chat template"],
        "plain": ["lacks json"],
        "us": ["is not tagged region=eu"],
        "barred": ["the key may not use it"],
        "open": ["its circuit breaker is open"],
        "sluggish": ["predicted TPOT 500 ms, the ceiling is 200 ms"],
        "off": ["no replica is ready"],
        "failed": ["it cannot be loaded: its files are damaged"],
        "nowhere@1": ["nothing deploys it"],
    }


async def test_a_prompt_of_tokens_is_held_against_the_context_exactly(crowd: Any) -> None:
    async with crowd() as gateway:
        body = {"model": ROUTE, "prompt": [5] * 100, "max_tokens": 29}
        over = (await reasons(gateway, body))["small"]
        fits = (await reasons(gateway, {**body, "max_tokens": 28}))["small"]
    assert over == ["needs 129 tokens of context, has 128"]
    assert fits == []


async def test_auto_is_over_all_that_the_key_may_use(crowd: Any) -> None:
    async with crowd() as gateway:
        body = {"model": "auto", "prompt": "say", "max_tokens": 1}
        bound = await reasons(gateway, body)
        gateway.client.key = "mm-good"
        free = await reasons(gateway, body)
    assert bound.keys() == free.keys() == {*READY, *DOWN} - {"nowhere"}
    assert {name for name, why in bound.items() if "the key may not use it" in why} == {"barred"}
    assert not any("the key may not use it" in why for why in free.values())


@pytest.mark.parametrize("as_header", [False, True])
async def test_who_is_preferred_comes_first_though_the_route_would_not_choose_it(
    crowd: Any, as_header: bool
) -> None:
    async with crowd() as gateway:
        body: dict[str, Any] = {"model": ROUTE, "prompt": "say", "max_tokens": 1}
        headers = {"x-mmserve-prefer": "plain"} if as_header else {}
        wishes = {} if as_header else {"mmserve": {"prefer": ["plain"]}}
        plain = await gateway.client.post("/v1/completions", body)
        answer = await gateway.client.post("/v1/completions", {**body, **wishes}, headers=headers)
    assert plain.headers["x-mmserve-model"] == "fine@1"
    assert answer.headers["x-mmserve-model"] == "plain@1"


async def test_where_a_budget_cannot_pay_for_the_first_choice_a_cheaper_one_answers(
    open_gateway: Opener,
) -> None:
    """Once it was heard how little is left, it is a filter; before, the ledger refuses and the next one is tried."""
    budget = BudgetEntry(
        id="b", name="pocket money", scope=Scope.KEY, subject="k1", period=Period.TOTAL, limit_nano=1_000_000
    )
    prices = {"dear": Decimal(900), "cheap": Decimal(1)}
    known = RoutingTable.build(
        revision=2,
        models=[ModelEntry(id=name, default=f"{name}@1") for name in prices],
        versions=[
            VersionEntry(
                served_id=f"{name}@1",
                model=name,
                prices=Prices.of(per_million_input=Decimal(0), per_million_output=price),
            )
            for name, price in prices.items()
        ],
        aliases={},
        deployments=[DeploymentEntry(id=name, served_id=f"{name}@1") for name in prices],
        budgets=[budget],
        routes=[
            RouteEntry(
                id=ROUTE,
                policy=Policy.PRIORITY,
                candidates=tuple(CandidateEntry(target=name) for name in prices),
            )
        ],
    )
    async with open_gateway() as gateway, contextlib.AsyncExitStack() as stack:
        await has_table(gateway, known)
        for name in prices:
            engine = FakeEngine(gateway.redis_url, gateway.layer, deployment=name, script=words("ok"))
            await stack.enter_async_context(engine)
        await all_ready(gateway, tuple(prices))
        body = {"model": ROUTE, "prompt": "say", "max_tokens": 100}
        first = await gateway.client.post("/v1/completions", body)
        heard = await reasons(gateway, body)
        second = await gateway.client.post("/v1/completions", body)
        nobody = await gateway.client.post("/v1/completions", {**body, "max_tokens": 2000})
    assert first.headers["x-mmserve-model"] == second.headers["x-mmserve-model"] == "cheap@1"
    assert heard["cheap"] == []
    assert heard["dear"] == ["costs about $0.09, the pocket money has $0.0009 left"]
    error = nobody.json()["error"]
    assert (nobody.status, error["code"]) == (429, "insufficient_quota")
    assert "pocket money" in error["message"]
    assert nobody.headers["x-should-retry"] == "false"


async def test_how_far_predictions_are_off_is_a_metric(open_gateway: Opener) -> None:
    def error(what: str) -> float | None:
        name, labels = "mmserve_latency_prediction_error", {"deployment": "learned", "what": what}
        samples = [one for metric in REGISTRY.restricted_registry([name]).collect() for one in metric.samples]
        return next((one.value for one in samples if one.labels == labels), None)

    known = RoutingTable.build(
        revision=2,
        models=[ModelEntry(id="learned", default="learned@1")],
        versions=[VersionEntry(served_id="learned@1", model="learned")],
        aliases={},
        deployments=[DeploymentEntry(id="learned", served_id="learned@1")],
    )
    async with open_gateway() as gateway:
        await has_table(gateway, known)
        async with FakeEngine(
            gateway.redis_url, gateway.layer, deployment="learned", script=words("a", "b", "c")
        ):
            await all_ready(gateway, ("learned",))
            body = {"model": "learned", "prompt": "say", "max_tokens": 3}
            for _ in range(8):
                assert (await gateway.client.post("/v1/completions", body)).status == 200
            assert error("ttft") is None
            for _ in range(2):
                assert (await gateway.client.post("/v1/completions", body)).status == 200
            await until(lambda: error("ttft") is not None and error("tpot") is not None)
            [candidate] = (await gateway.client.post("/v1/routing/explain", body)).json()["candidates"]
    assert 0.0 <= error("ttft") < 100.0
    assert candidate["scores"]["ttft_s"] > 0.0
