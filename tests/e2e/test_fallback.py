"""A route over two versions on a whole platform: who hangs is left for the other one, and everybody can see why.

Everything is real but the engine, which counts (tests/counting_engine.py).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.counting_engine import counted
from tests.e2e.conftest import expect, register_count
from tests.e2e.platform import Platform, wait_until

pytestmark = pytest.mark.timeout(150)

ROUTE, FIRST, SECOND = "either", "count@here", "count@there"
ROUTES = "/v1/routing/routes"


@pytest.fixture
def either(counting: Platform) -> Iterator[str]:
    """The route's path; ``here`` comes first, and has a second and a half for its first token."""
    for name in (FIRST, SECOND):
        if counting.http.get(f"/v1/models/{name}").status_code == 404:
            register_count(counting, name.partition("@")[2])
        expect(counting.http.post(f"/v1/models/{name}/load", json={}), 202)
    for name in (FIRST, SECOND):
        counting.wait_ready(name, 60)
    body = {
        "name": ROUTE,
        "policy": "priority",
        "first_token_ms": 1500,
        "candidates": [{"target": FIRST}, {"target": SECOND}],
    }
    path = f"{ROUTES}/{expect(counting.http.post(ROUTES, json=body), 201)['id']}"
    wait_until(lambda: _ask(counting).status_code == 200, 10, "the route is live")
    yield path
    assert counting.http.delete(path).status_code == 204
    for name in (FIRST, SECOND):
        expect(counting.http.post(f"/v1/models/{name}/unload", json={}), 202)
        wait_until(lambda name=name: counting.status(name)["status"] == "unloaded", 40, f"{name} is gone")


def _ask(platform: Platform, **more: Any) -> Any:
    return platform.http.post(
        "/v1/completions", json={"model": ROUTE, "prompt": "x", "max_tokens": 5, **more}
    )


@pytest.fixture
def client(counting: Platform) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{counting.url}/v1", api_key=counting.key) as found:
        yield found


def test_who_hangs_is_left_for_the_next_and_header_decision_and_statistics_say_so(
    counting: Platform, either: str, client: openai.OpenAI
) -> None:
    completions = client.completions.with_raw_response
    before = completions.create(model=ROUTE, prompt="x", max_tokens=5)
    assert before.headers["x-mmserve-model"] == FIRST
    next(iter(counting.processes(f"mmserve engine {FIRST}"))).send_signal(signal.SIGUSR1)
    answer = completions.create(model=ROUTE, prompt="x", max_tokens=5)
    assert answer.headers["x-mmserve-model"] == SECOND
    assert answer.parse().choices[0].text == counted(5)

    place = f"/v1/routing/decisions/{answer.headers['x-mmserve-decision']}"
    wait_until(lambda: counting.http.get(place).status_code == 200, 10, "the decision is written down")
    kept = counting.http.get(place).json()
    assert [one["served_id"] for one in kept["chain"]] == [FIRST, SECOND]
    [attempt] = kept["attempts"]
    assert (attempt["served_id"], attempt["why"]) == (FIRST, "no first token in time")
    assert kept["outcome"]["served"] == SECOND

    def fell_back() -> bool:
        rows = counting.http.get(f"/v1/routing/stats?route={ROUTE}").json()["data"]
        return any(row["version"] == SECOND and row["fallbacks"] >= 1 for row in rows)

    wait_until(fell_back, 30, "the statistics have the fallback")
    metrics = counting.http.get("/metrics").text
    assert "mmserve_fallbacks_total" in metrics
    # The node finds the hung engine and replaces it; the route's first choice answers again.
    wait_until(lambda: _ask(counting).headers.get("x-mmserve-model") == FIRST, 60, "the first choice is back")
    counting.books_balance()


def test_a_wish_for_no_fallback_and_unknown_wishes_through_the_official_client(
    counting: Platform, either: str, client: openai.OpenAI
) -> None:
    completions = client.completions
    preferred = completions.with_raw_response.create(
        model=ROUTE, prompt="x", max_tokens=2, extra_body={"mmserve": {"prefer": [SECOND]}}
    )
    assert preferred.headers["x-mmserve-model"] == SECOND
    by_header = completions.with_raw_response.create(
        model=ROUTE, prompt="x", max_tokens=2, extra_headers={"x-mmserve-prefer": SECOND}
    )
    assert by_header.headers["x-mmserve-model"] == SECOND
    with pytest.raises(openai.BadRequestError, match=r"mmserve\.favour"):
        completions.create(model=ROUTE, prompt="x", extra_body={"mmserve": {"favour": [SECOND]}})
    with pytest.raises(openai.BadRequestError, match="x-mmserve-favour"):
        completions.create(model=ROUTE, prompt="x", extra_headers={"x-mmserve-favour": SECOND})
    explained = counting.http.post(
        "/v1/routing/explain", json={"model": ROUTE, "prompt": "x", "mmserve": {"no_fallback": True}}
    ).json()
    assert len(explained["chain"]) == 1
    assert {"chosen", "chain", "candidates", "revision"} <= explained.keys()
    assert all({"id", "eligible", "reasons", "scores"} <= one.keys() for one in explained["candidates"])


def test_what_a_route_names_cannot_be_taken_from_under_it(counting: Platform, either: str) -> None:
    [version] = [
        one
        for one in counting.http.get("/v1/registry/versions").json()["results"]
        if one["served_id"] == SECOND
    ]
    refused = counting.http.post(f"/v1/registry/versions/{version['id']}/archive", json={})
    assert refused.status_code == 409
    model = version["model"]
    alias = {"alias": "green", "version": "there"}
    expect(counting.http.post(f"/v1/registry/models/{model}/promote", json=alias), 200)
    by_alias = [{"target": FIRST}, {"target": "count@green"}]
    expect(counting.http.patch(either, json={"candidates": by_alias}), 200)
    [green] = [
        one for one in counting.http.get("/v1/registry/aliases").json()["results"] if one["name"] == "green"
    ]
    refused = counting.http.delete(f"/v1/registry/aliases/{green['id']}")
    assert refused.status_code == 409
    assert f"The route {ROUTE} names count@green" in refused.json()["error"]["message"]
    expect(counting.http.patch(either, json={"candidates": by_alias[:1]}), 200)
    assert counting.http.delete(f"/v1/registry/aliases/{green['id']}").status_code == 204
