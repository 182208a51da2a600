"""Money and decisions through the front door of the whole platform: its own controller rolls up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from tests.e2e.platform import Platform, wait_until

CHAT = {
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "Count to five."}],
    "max_tokens": 12,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def priced(platform: Platform) -> Iterator[Platform]:
    http = platform.http
    rows = http.get("/v1/registry/versions").json()["results"]
    row = next(one for one in rows if one["served_id"].startswith("smollm2-135m-instruct@"))
    path = f"/v1/registry/versions/{row['id']}"
    assert http.patch(path, json={"price_input": "10", "price_output": "20"}).status_code == 200
    wait_until(lambda: "x-mmserve-cost-usd" in answer(platform).headers, 30, "the price is live")
    yield platform
    http.patch(path, json={"price_input": None, "price_output": None})


def answer(platform: Platform):
    return platform.http.post("/v1/chat/completions", json=CHAT)


def spent(platform: Platform) -> Decimal:
    found = platform.http.get("/v1/usage?by=model&model=smollm2-135m-instruct&since=1d").json()["total"]
    return Decimal(found["cost_usd"])


def test_an_answers_cost_is_its_tokens_and_is_rolled_up_to_the_last_nano_dollar(priced: Platform) -> None:
    before = spent(priced)
    found = answer(priced)
    usage = found.json()["usage"]
    cost = Decimal(found.headers["x-mmserve-cost-usd"])
    assert cost == (usage["prompt_tokens"] * 10 + usage["completion_tokens"] * 20) / Decimal(10**6)
    wait_until(lambda: spent(priced) > before, 30, "the answer is rolled up")
    assert (spent(priced) - before) % cost == 0  # the fixture's own answers may have come late


def test_those_who_run_together_share_the_device_hour(platform: Platform) -> None:
    http = platform.http
    rows = http.get("/v1/registry/versions").json()["results"]
    row = next(one for one in rows if one["served_id"].startswith("gemma-3-270m@"))
    path = f"/v1/registry/versions/{row['id']}"
    body = {"model": "gemma-3-270m", "prompt": "One, two,", "max_tokens": 16}

    def cost(_: int = 0) -> Decimal:
        return Decimal(http.post("/v1/completions", json=body).headers.get("x-mmserve-cost-usd", "0"))

    # A dollar a second, so that what four pay together is what the engine worked: no more than has passed.
    assert http.patch(path, json={"price_device_hour": "3600"}).status_code == 200
    try:
        wait_until(lambda: cost() > 0, 30, "the price is live")
        begun = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            costs = list(pool.map(cost, range(4)))
        passed = Decimal(time.monotonic() - begun)
    finally:
        http.patch(path, json={"price_device_hour": None})
    assert min(costs) > 0
    assert sum(costs) < passed


def test_a_decision_is_found_by_the_id_in_the_header(priced: Platform) -> None:
    found = answer(priced)
    path = f"/v1/routing/decisions/{found.headers['x-mmserve-decision']}"
    wait_until(lambda: priced.http.get(path).status_code == 200, 10, "the decision is written down")
    decision = priced.http.get(path).json()
    assert decision["outcome"]["served"] == found.headers["x-mmserve-model"]
    assert decision["outcome"]["cost_usd"] == found.headers["x-mmserve-cost-usd"]
    assert "Count to five" not in str(decision)


def test_a_budget_refuses_by_name_until_it_is_raised(priced: Platform) -> None:
    http = priced.http
    key = next(
        one
        for one in http.get("/v1/registry/keys").json()["results"]
        if priced.key.startswith(one["token_key"])
    )
    body = {"scope": "key", "subject": key["id"], "period": "day", "limit_usd": "0.000001"}
    made = http.post("/v1/routing/budgets", json=body)
    assert made.status_code == 201, made.text
    path = f"/v1/routing/budgets/{made.json()['id']}"
    try:
        wait_until(lambda: answer(priced).status_code == 429, 10, "the budget is live")
        refused = answer(priced)
        assert refused.reason_phrase == "Too Many Requests"
        assert refused.json()["error"]["code"] == "insufficient_quota"
        assert "daily budget of key first start cannot pay" in refused.json()["error"]["message"]
        assert http.patch(path, json={"limit_usd": "100"}).status_code == 200
        wait_until(lambda: answer(priced).status_code == 200, 10, "the raised budget is live")
    finally:
        http.delete(path)

    def refusal_is_counted() -> bool:
        stats = http.get("/v1/routing/stats?window=5m").json()["data"]
        return any("insufficient_quota" in row["errors"] for row in stats)

    wait_until(refusal_is_counted, 20, "the refusals are rolled up")
