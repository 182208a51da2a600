"""``/v1/usage``, teams, budgets, decisions and routing statistics over REST."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rest_framework.test import APIClient

from mmserve.models import AccessKey
from registry.models import Event
from routing import rollup
from routing.core.decision import Candidate, Explanation, Link, RequestFacts
from routing.core.records import DECISIONS_KEY, DecisionRecord, decision_key
from routing.models import Budget
from tests.integration.routing.conftest import client, put, record

__all__ = ["client", "put"]

Put = Callable[..., None]


@pytest.fixture
def used(client: Any, put: Put, db: None) -> None:
    """Three keys, two models, two days."""
    now = datetime.datetime.now(datetime.UTC).replace(minute=30)
    for days, key, model, cost in (
        (0, "a", "m@1", 1_000), (0, "b", "m@1", 2_000), (1, "a", "n@1", 3_000), (1, "c", "m@1", 4_000),
        (40, "a", "m@1", 10**9),
    ):  # fmt: skip
        at = (now - datetime.timedelta(days=days)).timestamp()
        put(record(at=at, key=key, served_id=model, cost_nano=cost))
    rollup.roll_up_all(client)


def test_usage_is_grouped_filtered_and_summed(manager: APIClient, used: None) -> None:
    answer = manager.get("/v1/usage?by=key&model=m").json()
    assert [(row["key"], row["cost_usd"]) for row in answer["data"]] == [
        ("a", "0.000001"),
        ("b", "0.000002"),
        ("c", "0.000004"),
    ]
    assert answer["total"]["cost_usd"] == "0.000007"
    assert answer["next"] is None
    longer = manager.get("/v1/usage?by=model&since=60d").json()
    assert [(row["model"], row["requests"]) for row in longer["data"]] == [("m", 4), ("n", 1)]


def test_an_arm_is_found_whatever_other_experiments_its_requests_were_in(
    manager: APIClient, client: Any, put: Put, db: None
) -> None:
    put(
        record(assignments={"e": "a"}, cost_nano=1_000),
        record(assignments={"e": "a", "shadow": "control"}, cost_nano=2_000),
        record(assignments={"before": "x", "e": "a"}, cost_nano=4_000),
        record(assignments={"e": "A"}, cost_nano=8_000),
        record(assignments={"e": "a2", "some": "a"}, cost_nano=16_000),
        record(assignments={"e": "b"}, cost_nano=32_000),
        record(cost_nano=64_000),
    )
    rollup.roll_up_all(client)
    for path in ("/v1/usage?by=arm&arm=", "/v1/routing/stats?window=1h&arm="):
        for arm, micros in (
            ("e/a", 7),
            ("shadow/control", 2),
            ("e/a,shadow/control", 2),
            ("e/A", 8),
            ("a", 0),
            (",", 0),
        ):
            rows = manager.get(f"{path}{arm}").json()["data"]
            assert round(sum(float(row["cost_usd"]) for row in rows) * 1e6) == micros, (path, arm)


def test_usage_comes_in_pages_that_neither_miss_nor_repeat(manager: APIClient, used: None) -> None:
    whole = manager.get("/v1/usage?by=day,key,model&since=60d").json()["data"]
    rows, cursor = [], ""
    while True:
        page = manager.get(f"/v1/usage?by=day,key,model&since=60d&limit=2{cursor}").json()
        rows += page["data"]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert rows == whole
    assert len(rows) == 5
    assert rows[0]["day"] < rows[-1]["day"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("by=prompt", "by"),
        ("by=", "by"),
        ("by=key,key", "by"),
        ("since=soon", "since"),
        ("since=999999d", "since"),
        ("until=2026-13-01", "until"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=W10", "cursor"),
        ("tenant=1", "tenant"),
        ("key=%00", "key"),
    ],
)
def test_a_wrong_query_names_the_field(manager: APIClient, db: None, query: str, param: str) -> None:
    response = manager.get(f"/v1/usage?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_cursor_of_another_report_is_refused(manager: APIClient, used: None) -> None:
    cursor = manager.get("/v1/usage?by=key&limit=1").json()["next"]
    response = manager.get(f"/v1/usage?by=model&limit=1&cursor={cursor}")
    assert response.json()["error"]["param"] == "cursor"


@pytest.mark.parametrize(
    "path", ["/v1/usage", "/v1/routing/stats", "/v1/routing/decisions", "/v1/routing/budgets"]
)
def test_spending_is_for_those_who_manage(reader: APIClient, path: str) -> None:
    assert reader.get(path).status_code == 403


def test_a_budget_is_made_changed_and_deleted_and_each_is_an_event(
    manager: APIClient, infer_key: tuple[AccessKey, str], redis_url: str
) -> None:
    key = str(infer_key[0].pk)
    made = manager.post(
        "/v1/routing/budgets",
        {"scope": "key", "subject": key, "limit_usd": "5", "reason": "trial"},
        format="json",
    )
    assert made.status_code == 201
    assert (made.json()["period"], made.json()["spent_usd"]) == ("month", "0")
    path = f"/v1/routing/budgets/{made.json()['id']}"
    again = manager.post(
        "/v1/routing/budgets", {"scope": "key", "subject": key, "limit_usd": "6"}, format="json"
    )
    assert again.status_code == 409
    changed = manager.patch(path, {"limit_usd": "7.25"}, format="json")
    assert changed.json()["limit_usd"] == "7.250000"
    assert manager.patch(path, {"period": "day"}, format="json").json()["error"]["param"] == "period"
    assert manager.delete(path).status_code == 204
    assert not Budget.objects.exists()
    kinds = [event.kind for event in Event.objects.filter(kind__startswith="budget").order_by("id")]
    assert kinds == ["budget.created", "budget.changed", "budget.deleted"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scope": "key", "subject": "nobody", "limit_usd": "5"}, "subject"),
        ({"scope": "team", "subject": "nobody", "limit_usd": "5"}, "subject"),
        ({"scope": "user", "subject": "x", "limit_usd": "5"}, "scope"),
        ({"scope": "route", "subject": "x", "limit_usd": "-1"}, "limit_usd"),
        ({"scope": "route", "subject": "x", "limit_usd": "9000001"}, "limit_usd"),
        ({"scope": "route", "subject": "x"}, "limit_usd"),
        ({"scope": "route", "subject": "x", "limit_usd": "1", "currency": "EUR"}, "currency"),
    ],
)
def test_a_wrong_budget_names_the_field(manager: APIClient, body: dict[str, Any], param: str) -> None:
    response = manager.post("/v1/routing/budgets", body, format="json")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_key_joins_a_team_and_the_team_stays_while_it_has_keys(
    manager: APIClient, infer_key: tuple[AccessKey, str]
) -> None:
    team = manager.post("/v1/routing/teams", {"name": "search"}, format="json").json()
    path = f"/v1/registry/keys/{infer_key[0].pk}"
    assert manager.patch(path, {"team": "search"}, format="json").json()["team"] == "search"
    assert manager.patch(path, {"team": "nobody"}, format="json").json()["error"]["param"] == "team"
    assert manager.get(path).json()["team"] == "search"
    assert manager.delete(f"/v1/routing/teams/{team['id']}").status_code == 409
    assert manager.patch(path, {"team": None}, format="json").json()["team"] is None
    assert manager.delete(f"/v1/routing/teams/{team['id']}").status_code == 204
    rename = {"name": "other"}
    other = manager.post("/v1/routing/teams", rename, format="json").json()
    assert manager.patch(f"/v1/routing/teams/{other['id']}", {"name": "x"}, format="json").status_code == 400


def decision(number: int, **given: Any) -> DecisionRecord:
    candidates = (
        Candidate(id="small", eligible=True, reasons=(), scores={"load": 0.25}),
        Candidate(id="big", eligible=False, reasons=("no replica is ready",), scores={}),
    )
    first = Link(id="small", served_id="m@1", cold=False, ttft_s=0.4, tpot_s=0.01, cost_usd=0.000002)
    made = Explanation(
        id=f"d{number}", revision=4, model="m", route="smart", policy="balanced", served_id="m@1", chosen="small",
        chain=(first,), candidates=candidates,
    )  # fmt: skip
    facts = RequestFacts(decision_id=f"d{number}", model="m", max_tokens=16)
    return DecisionRecord(
        id=f"d{number}", at=time.time() + number, key="k1", endpoint="completions", facts=facts, decision=made,
        outcome="completed", status=200, served_id="m@1", deployment="small", ttft_s=0.5, cost_nano=1500,
        predicted_cost_nano=9000, **given,
    )  # fmt: skip


def keep(client: Any, *records: DecisionRecord) -> None:
    for one in records:
        client.set(decision_key(one.id), msgspec.json.encode(one))
        client.zadd(DECISIONS_KEY, {one.id: one.at})


def test_a_decision_tells_candidates_reasons_expectation_and_outcome(manager: APIClient, client: Any) -> None:
    keep(client, decision(1))
    found = manager.get("/v1/routing/decisions/d1").json()
    assert (found["chosen"], found["revision"], found["policy"]) == ("small", 4, "balanced")
    assert [(link["served_id"], link["ttft_s"]) for link in found["chain"]] == [("m@1", 0.4)]
    assert found["candidates"][1] == {
        "id": "big", "model": "", "eligible": False, "reasons": ["no replica is ready"], "scores": {},
    }  # fmt: skip
    assert (found["predicted"]["most_cost_usd"], found["outcome"]["cost_usd"]) == ("0.000009", "0.0000015")
    assert found["request"]["max_tokens"] == 16
    assert "prompt" not in json.dumps(found).replace("prompt_tokens", "")


def test_the_last_decisions_come_newest_first(manager: APIClient, client: Any) -> None:
    keep(client, *[decision(number) for number in range(5)])
    client.set(decision_key("d4"), b"{")  # written by another release
    found = manager.get("/v1/routing/decisions?limit=3").json()
    assert [one["id"] for one in found["data"]] == ["d3", "d2"]


@pytest.mark.parametrize("name", ["unknown", "a" * 200, "%00", "..", "ü"])
def test_a_decision_that_is_not_kept_is_404_with_the_rule(manager: APIClient, client: Any, name: str) -> None:
    response = manager.get(f"/v1/routing/decisions/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_statistics_over_the_window_asked_for(manager: APIClient, client: Any, put: Put, db: None) -> None:
    put(record(ttft_s=0.2, e2e_s=1.0), record(outcome="engine_lost", status=503), record(route="other"))
    rollup.roll_up_all(client)
    answer = manager.get("/v1/routing/stats?window=15m&route=smart").json()
    (row,) = answer["data"]
    assert (answer["window_s"], answer["relative_error"], answer["left_out"]) == (900, 0.02, 0)
    assert (row["requests"], row["errors"], row["route"]) == (2, {"engine_lost": 1}, "smart")
    assert row["e2e_s"]["p50"] == pytest.approx(1.0, rel=0.021)
    assert row["cost_usd"] == "0.000002"
    assert len(manager.get("/v1/routing/stats").json()["data"]) == 2


@pytest.mark.parametrize("window", ["0", "3d", "-5", "5x", "", "99999999999999999"])
def test_a_wrong_window_is_refused(manager: APIClient, db: None, window: str) -> None:
    response = manager.get(f"/v1/routing/stats?window={window}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "window"
