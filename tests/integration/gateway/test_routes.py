"""Routes and what a client wishes, through the front door."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from inference.gateway.auth import KeyGrant
from inference.protocol import REVISIONS_KEY
from routing.core.route import CandidateEntry, Constraints, Policy, RouteEntry
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from tests.integration.gateway.conftest import Gateway, Opener, heard
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.waiting import until

BODY: dict[str, Any] = {"model": "best", "prompt": "say", "max_tokens": 8}


def routed() -> RoutingTable:
    """A route over a model in the EU that nothing serves now, and one that the engine serves."""
    eu = VersionEntry(
        served_id="far@1", model="far", capabilities=frozenset({"completion"}), tags=frozenset({"region=eu"})
    )
    echo = VersionEntry(
        served_id="acme/echo@1", model="acme/echo", capabilities=frozenset({"completion", "chat", "json"})
    )
    lines = (CandidateEntry(target="far"), CandidateEntry(target="acme/echo"), CandidateEntry(target="gone"))
    return RoutingTable.build(
        revision=2,
        models=[ModelEntry(id="far", default="far@1"), ModelEntry(id="acme/echo", default="acme/echo@1")],
        versions=[eu, echo],
        aliases={},
        deployments=[
            DeploymentEntry(id="far", served_id="far@1", wanted_replicas=0),
            DeploymentEntry(id="echo", served_id="acme/echo@1", limits=Limits(context_length=64)),
        ],
        routes=[
            RouteEntry(id="best", candidates=lines, policy=Policy.PRIORITY),
            RouteEntry(id="eu", candidates=lines, constraints=Constraints(require=("region=eu",))),
        ],
    )


@pytest.fixture
def routed_gateway(open_gateway: Opener) -> Any:
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Gateway]:
        async with (
            open_gateway() as gateway,
            FakeEngine(gateway.redis_url, gateway.layer, script=words("Hello")),
        ):
            gateway.table = routed()
            gateway.runtime.table.push(2)
            await until(lambda: gateway.runtime.table.revision == 2)
            await heard(gateway)
            yield gateway

    return opened


async def test_a_route_is_answered_by_whom_it_chooses_and_the_header_says_who(routed_gateway):
    async with routed_gateway() as gateway:
        response = await gateway.client.post("/v1/completions", BODY)
        auto = await gateway.client.post("/v1/completions", {**BODY, "model": "auto"})
    assert response.status == 200, response.body
    assert response.headers["x-mmserve-model"] == "acme/echo@1"
    assert response.json()["model"] == "best"
    assert auto.headers["x-mmserve-model"] == "acme/echo@1"


async def test_explain_has_the_candidates_of_a_route_with_their_reasons(routed_gateway):
    async with routed_gateway() as gateway:
        found = (await gateway.client.post("/v1/routing/explain", BODY)).json()
    assert (found["route"], found["policy"], found["chosen"]) == ("best", "priority", "echo")
    assert found["chain"] == ["echo"]
    assert [(one["id"], one["model"], one["reasons"]) for one in found["candidates"]] == [
        ("echo", "acme/echo@1", []),
        ("far", "far@1", ["no replica is ready"]),
    ]
    assert found["problems"] == ["The model 'gone' does not exist."]


async def test_when_nobody_of_a_route_can_serve_the_error_has_each_ones_reason(routed_gateway):
    async with routed_gateway() as gateway:
        response = await gateway.client.post("/v1/completions", {**BODY, "model": "eu"})
    assert response.status == 503
    message = response.json()["error"]["message"]
    assert "echo: is not tagged region=eu" in message
    assert "far: no replica is ready" in message


@pytest.mark.parametrize(
    ("wishes", "headers"),
    [
        ({"require": ["region=eu", "json"]}, {}),
        ({}, {"x-mmserve-require": "region=eu, json"}),
        ({"require": ["json"]}, {"x-mmserve-require": "region=eu"}),
    ],
)
async def test_wishes_in_the_body_and_in_headers_tighten(routed_gateway, wishes, headers):
    async with routed_gateway() as gateway:
        response = await gateway.client.post("/v1/completions", {**BODY, "mmserve": wishes}, headers=headers)
    assert response.status == 400, response.body
    error = response.json()["error"]
    assert error["code"] == "no_eligible_candidate"
    assert "is not tagged region=eu" in error["message"]
    assert "lacks json" in error["message"]


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        ({"mmserve": {"max_cost": 1}}, {}, "mmserve.max_cost"),
        ({"mmserve": {"max_ttft_ms": 0}}, {}, "mmserve.max_ttft_ms"),
        ({"mmserve": {"require": "json"}}, {}, "mmserve.require"),
        ({}, {"x-mmserve-max-cost": "1"}, "x-mmserve-max-cost"),
        ({}, {"x-mmserve-max-ttft-ms": "soon"}, "x-mmserve-max-ttft-ms"),
        ({}, {"x-mmserve-max-ttft-ms": "1_0"}, "x-mmserve-max-ttft-ms"),
        ({}, {"x-mmserve-max-cost-usd": "nan"}, "x-mmserve-max-cost-usd"),
        ({}, {"x-mmserve-no-fallback": "maybe"}, "x-mmserve-no-fallback"),
    ],
)
async def test_a_wish_that_means_nothing_is_refused_by_name(routed_gateway, body, headers, param):
    async with routed_gateway() as gateway:
        response = await gateway.client.post("/v1/completions", {**BODY, **body}, headers=headers)
    assert response.status == 400, response.body
    assert response.json()["error"]["param"] == param


async def test_a_key_may_use_what_its_patterns_name(routed_gateway):
    async with routed_gateway() as gateway:
        for name, patterns in (("mm-route", ("best",)), ("mm-model", ("acme/*",)), ("mm-other", ("far*",))):
            gateway.keys.grants[name] = KeyGrant(
                id=name, name=name, scopes=frozenset({"infer"}), allowed_models=patterns
            )

        async def asked(key: str, model: str) -> tuple[int, str]:
            response = await gateway.client.post("/v1/completions", {**BODY, "model": model}, key=key)
            return response.status, response.headers.get("x-mmserve-model", response.json().get("error"))

        assert await asked("mm-route", "best") == (200, "acme/echo@1")
        assert await asked("mm-model", "best") == (200, "acme/echo@1")
        assert await asked("mm-model", "auto") == (200, "acme/echo@1")
        status, error = await asked("mm-other", "acme/echo")
    assert status == 403
    assert error["code"] == "model_not_allowed"


async def test_the_gateway_reports_each_revision_as_soon_as_it_runs_it(routed_gateway):
    async with routed_gateway() as gateway:
        await gateway.runtime.redis.delete(REVISIONS_KEY)
        gateway.table = dataclasses.replace(gateway.table, revision=3)
        gateway.runtime.table.push(3)
        async with asyncio.timeout(2.5):  # sooner than the next report by the clock
            while await _reported(gateway) != [b"3"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert gateway.runtime.table.revision == 3


async def _reported(gateway: Gateway) -> list[bytes]:
    found = await gateway.runtime.redis.hgetall(REVISIONS_KEY)
    return [text.split()[0] for text in found.values()]
