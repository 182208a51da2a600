"""``/v1/routing/routes``: routes over REST."""

from __future__ import annotations

from typing import Any

import pytest
from rest_framework.test import APIClient

from registry.models import ModelVersion
from routing.core.route import Cause
from routing.route_entries import route_entries

ROUTES = "/v1/routing/routes"
BODY: dict[str, Any] = {
    "name": "fast",
    "policy": "balanced",
    "require": ["region=eu"],
    "max_cost_usd": "0.05",
    "candidates": [{"target": "acme/echo@1", "weight": 3, "note": "the first"}],
    "reason": "try it",
}


def test_a_route_lives_its_life_over_rest(manager: APIClient, ready: ModelVersion) -> None:
    created = manager.post(ROUTES, BODY, format="json")
    assert created.status_code == 201, created.content
    found = created.json()
    assert found["candidates"] == [{"target": "acme/echo@1", "weight": 3.0, "note": "the first"}]
    assert (found["policy"], found["revision"], found["max_cost_usd"]) == ("balanced", 1, "0.050000")
    one = f"{ROUTES}/{found['id']}"

    changed = manager.patch(one, {"policy": "priority"}, format="json", HTTP_IF_MATCH=created["ETag"])
    assert (changed.status_code, changed.json()["revision"]) == (200, 2)
    lost = manager.patch(one, {"policy": "weighted"}, format="json", HTTP_IF_MATCH=created["ETag"])
    assert lost.status_code == 412
    late = manager.patch(one, {"policy": "weighted", "expected_revision": 1}, format="json")
    assert late.status_code == 409
    assert manager.get(ROUTES, {"policy": "priority"}).json()["results"][0]["name"] == "fast"
    assert manager.delete(one).status_code == 204
    assert manager.get(one).status_code == 404


def test_where_a_failure_leads_is_in_the_table(manager: APIClient, ready: ModelVersion) -> None:
    more = {"no_fallback_on": ["error", "budget"], "first_token_ms": 1500, "hedge_percent": 5}
    created = manager.post(ROUTES, {**BODY, **more}, format="json")
    assert created.status_code == 201, created.content
    [entry] = route_entries()
    assert entry.fallback_on == {Cause.TIMEOUT, Cause.OVERLOAD, Cause.CONTEXT, Cause.BREAKER}
    assert (entry.first_token_s, entry.hedge_share) == (1.5, 0.05)
    assert created.json()["hedge_percent"] == 5.0


def test_a_doubled_post_makes_one_route(manager: APIClient, ready: ModelVersion) -> None:
    twice = [manager.post(ROUTES, BODY, format="json", HTTP_IDEMPOTENCY_KEY="k") for _ in range(2)]
    assert [answer.status_code for answer in twice] == [201, 201]
    assert twice[0].json() == twice[1].json()


@pytest.mark.parametrize(
    ("change", "param", "status"),
    [
        ({"policy": "best"}, "policy", 400),
        ({"name": "no name"}, "name", 400),
        ({"name": "acme/echo"}, "name", 409),
        ({"candidates": [{"target": "acme/echo@1", "weight": "3"}]}, "candidates", 400),
        ({"candidates": [{"target": "nobody"}]}, "candidates[0].target", 400),
        ({"candidates": [{"target": "acme/echo", "wieght": 1}]}, "candidates", 400),
        ({"max_ttft_ms": 0}, "max_ttft_ms", 400),
        ({"require": ["no tag"]}, "require", 400),
        ({"weight_quality": -1}, "weight_quality", 400),
        ({"no_fallback_on": ["boredom"]}, "no_fallback_on", 400),
        ({"no_fallback_on": ["error", "error"]}, "no_fallback_on", 400),
        ({"first_token_ms": 0}, "first_token_ms", 400),
        ({"hedge_percent": 101}, "hedge_percent", 400),
        ({"hedge_percent": -1}, "hedge_percent", 400),
        ({"hedge_percent": "5"}, "hedge_percent", 400),
        ({"colour": "red"}, "colour", 400),
    ],
)
def test_a_wrong_field_is_named(
    manager: APIClient, ready: ModelVersion, change: dict[str, Any], param: str, status: int
) -> None:
    answer = manager.post(ROUTES, {**BODY, **change}, format="json")
    assert answer.status_code == status, answer.content
    assert answer.json()["error"]["param"].startswith(param)


def test_an_infer_key_may_not_change_routes(reader: APIClient, ready: ModelVersion) -> None:
    assert reader.post(ROUTES, BODY, format="json").status_code == 403


def test_a_route_that_is_on_needs_somebody_to_choose(manager: APIClient):
    answer = manager.post(ROUTES, {"name": "empty"}, format="json")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "candidates"
    answer = manager.post(ROUTES, {"name": "empty", "enabled": False}, format="json")
    assert answer.status_code == 201
