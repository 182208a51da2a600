"""An experiment in a real browser on real engines: from the form to the alias that moved."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import expect as answered
from tests.e2e.platform import Platform, wait_until
from tests.e2e.test_admin import browser, confirm, log_in, press, save, say

__all__ = ["browser"]
pytestmark = pytest.mark.browser

MODEL = "smollm2-135m-instruct"
TRIED = f"{MODEL}@tried"
AT_ONCE = 16
USERS = 160


@pytest.fixture(scope="module")
def twins(platform: Platform) -> Iterator[tuple[str, str]]:
    """The alias ``tried`` means the demo version; beside it the same files at half the price, by another engine."""
    http = platform.http
    versions = answered(http.get("/v1/registry/versions"), 200)["results"]
    first = next(one for one in versions if one["served_id"].startswith(f"{MODEL}@"))
    path = f"/v1/registry/versions/{first['id']}"
    answered(http.patch(path, json={"price_input": "20", "price_output": "20"}), 200)
    body = {"version": "cheap", "price_input": "10", "price_output": "10"}
    cheap = answered(http.post(f"{path}/duplicate", json=body), 201)
    model = answered(http.get(f"/v1/registry/models?name={MODEL}"), 200)["results"][0]
    promoted = {"version": first["version"], "alias": "tried"}
    alias = answered(http.post(f"/v1/registry/models/{model['id']}/promote", json=promoted), 200)
    answered(http.post(f"/v1/models/{cheap['served_id']}/load", json={}), 202)
    platform.wait_ready(cheap["served_id"])
    yield first["served_id"], cheap["served_id"]
    for row in answered(http.get("/v1/routing/experiments"), 200)["results"]:
        http.delete(f"/v1/routing/experiments/{row['id']}")
    http.delete(f"/v1/registry/aliases/{alias['id']}")
    http.patch(path, json={"price_input": None, "price_output": None})
    http.post(f"/v1/models/{cheap['served_id']}/unload", json={})
    wait_until(
        lambda: platform.status(cheap["served_id"])["status"] == "unloaded", 60, "the copy is unloaded"
    )
    assert http.delete(f"/v1/registry/versions/{cheap['id']}").status_code == 204


@pytest.fixture
def page(browser: Browser, platform: Platform) -> Iterator[Page]:
    with browser.new_context(base_url=platform.url, viewport={"width": 1440, "height": 900}) as context:
        context.set_default_timeout(20_000)
        opened = context.new_page()
        log_in(opened, platform.credentials["username"], platform.credentials["password"])
        expect(opened).to_have_title(re.compile("Dashboard"))
        yield opened


@pytest.fixture
def client(platform: Platform) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{platform.url}/v1", api_key=platform.key, max_retries=0, timeout=120
    ) as made:
        yield made


def ask(client: openai.OpenAI, user: str) -> tuple[str, str]:
    """The version that served this user, and the request's id."""
    raw = client.completions.with_raw_response.create(
        model=TRIED, prompt="One, two, three,", max_tokens=2, temperature=0, user=user
    )
    return raw.headers["x-mmserve-model"], raw.parse().id


def ask_all(client: openai.OpenAI, users: range) -> dict[str, tuple[str, str]]:
    names = [f"user-{number}" for number in users]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(names, pool.map(lambda name: ask(client, name), names), strict=True))


def choose(page: Page, place: int, served_id: str) -> None:
    """Choose an arm's version, as a person does: open the list, type, take what is found."""
    page.click(f"[data-id=related-widget-wrapper-arms-{place}-version] .select2-selection")
    page.fill(".select2-container--open .select2-search__field", served_id.partition("@")[0])
    page.get_by_role("option", name=served_id, exact=True).click()


def report(platform: Platform, number: str) -> dict[str, Any]:
    return dict(answered(platform.http.get(f"/v1/routing/experiments/{number}/report"), 200))


def counted(platform: Platform, number: str) -> int:
    return sum(arm["requests"] for arm in report(platform, number)["arms"])


def test_an_experiment_is_made_started_watched_and_shipped_by_its_buttons(
    platform: Platform, twins: tuple[str, str], page: Page, client: openai.OpenAI
) -> None:
    first, cheap = twins
    page.goto("/admin/routing/experiment/add/")
    page.fill("[name=name]", "half-price")
    page.fill("[name=target]", TRIED)
    page.select_option("[name=primary_metric]", "cost")
    page.fill("[name=guardrails]", "cost 20%\nrating 50%")
    page.fill("[name=ramp]", "25")
    for place, served_id in enumerate(twins):
        choose(page, place, served_id)
    save(page)
    page.click("#result_list a:has-text('half-price')")
    say(page).to_contain_text("Draft: nothing is served by it yet")
    number = re.search(r"/experiment/(\d+)/", page.url)[1]  # type: ignore[index]
    assert ask(client, "user-0")[0] == first

    press(page, "Start")
    confirm(page, "Start", "let us see")
    expect(page.locator("#experiment-panel")).to_contain_text("ramping")
    half = wait_until(
        lambda: (
            (found := ask_all(client, range(80))) and any(v == cheap for v, _ in found.values()) and found
        ),
        20,
        "the gateway knows the experiment",
    )
    inside = next(user for user, (served, _) in half.items() if served == cheap)

    press(page, "Pause")
    confirm(page, "Pause", "a look")
    say(page).to_contain_text("Paused: nobody is in it")
    wait_until(lambda: ask(client, inside)[0] == first, 20, "nobody is in it")
    press(page, "Resume")
    confirm(page, "Resume")
    wait_until(lambda: ask(client, inside)[0] == cheap, 20, "it goes on, and the unit has kept its arm")
    press(page, "Next step")
    confirm(page, "Next step", "faster")
    expect(page.locator("#next")).to_contain_text("At its full shares")

    before = counted(platform, number)

    def all_are_counted() -> bool:
        """Those asked now, and those before: nothing new comes."""
        found = counted(platform, number)
        time.sleep(2)
        return found >= before + USERS and counted(platform, number) == found

    asked = ask_all(client, range(1000, 1000 + USERS))
    assert {served for served, _ in asked.values()} == set(twins)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        said = pool.map(
            lambda one: platform.http.post("/v1/feedback", json={"request_id": one[1], "rating": 1}),
            asked.values(),
        )
    assert {answer.status_code for answer in said} == {200}
    wait_until(
        lambda: (
            all_are_counted()
            and all(one["state"] == "holds" for one in report(platform, number)["guardrails"])
        ),
        60,
        "requests and ratings are counted",
    )
    found = report(platform, number)
    page.reload()
    panel = page.locator("#experiment-panel")
    for arm in found["arms"]:
        expect(panel).to_contain_text(f"{arm['requests']}")
    expect(panel).to_contain_text("new wins")
    expect(page.locator("#plot svg")).to_contain_text("-50%")
    expect(page.locator("#guardrails")).to_contain_text("Rating")
    expect(page.locator("#guardrails").get_by_text("holds")).to_have_count(2)
    expect(page.locator("#mismatch")).to_have_count(0)

    press(page, "Ship winner")
    expect(page.locator("[name=winner]")).to_have_value("new")
    confirm(page, "Ship winner", "half the price")
    expect(panel).to_contain_text("Shipped: new")
    timeline = page.locator("#timeline").inner_text()
    order = [
        timeline.index(kind) for kind in ("shipped", "ramped", "resumed", "paused", "started", "created")
    ]
    assert order == sorted(order)
    assert "half the price" in timeline
    wait_until(
        lambda: {ask(client, f"after-{number}")[0] for number in range(4)} == {cheap},
        20,
        "the alias means the winner",
    )


def begun(platform: Platform, name: str, control: str, treatment: str, **fields: Any) -> str:
    """The number of an experiment that runs at its full shares."""
    body = {
        "name": name,
        "target": TRIED,
        "primary_metric": "e2e",
        "ramp": [],
        "arms": [
            {"name": "control", "version": control, "is_control": True},
            {"name": "new", "version": treatment},
        ],
        **fields,
    }
    row = answered(platform.http.post("/v1/routing/experiments", json=body), 201)
    answered(platform.http.post(f"/v1/routing/experiments/{row['id']}/start", json={}), 200)
    return str(row["id"])


def test_the_controller_rolls_back_what_breaks_a_guardrail(
    platform: Platform, twins: tuple[str, str], page: Page, client: openai.OpenAI
) -> None:
    first, cheap = twins
    guardrails = [{"metric": "cost", "limit": 0.2}]
    number = begun(platform, "twice-the-price", cheap, first, guardrails=guardrails)
    wait_until(
        lambda: {served for served, _ in ask_all(client, range(AT_ONCE)).values()} == set(twins),
        20,
        "the gateway knows the experiment",
    )
    ask_all(client, range(2000, 2000 + USERS))
    path = f"/v1/routing/experiments/{number}"
    wait_until(
        lambda: answered(platform.http.get(path), 200)["state"] == "rolled_back", 60, "it is rolled back"
    )
    page.goto(f"/admin/routing/experiment/{number}/change/")
    say(page).to_contain_text("Guardrail broken: cost of new is 100")
    expect(page.locator("#timeline")).to_contain_text("by controller")
    event = answered(platform.http.get(f"{path}/timeline"), 200)[0]
    assert event["kind"] == "experiment.rolled_back"
    means = answered(platform.http.get(f"/v1/models/{TRIED}"), 200)["version"]
    wait_until(
        lambda: (
            {served.partition("@")[2] for served, _ in ask_all(client, range(AT_ONCE)).values()} == {means}
        ),
        20,
        "everybody gets what the alias means",
    )


def test_a_shadow_answers_nobody_and_is_counted_in_pairs(
    platform: Platform, twins: tuple[str, str], page: Page, client: openai.OpenAI
) -> None:
    means = answered(platform.http.get(f"/v1/models/{TRIED}"), 200)["version"]
    original, copy = sorted(twins, key=lambda served: served.partition("@")[2] != means)
    number = begun(platform, "copied", original, copy, kind="shadow", shadow_percent=100)
    path = f"/v1/routing/experiments/{number}"

    def pairs() -> int:
        assert ask(client, "ada")[0] == original
        return min(arm["requests"] for arm in report(platform, number)["arms"])

    wait_until(lambda: pairs() >= 3, 30, "requests are copied")
    page.goto(f"/admin/routing/experiment/{number}/change/")
    expect(page.locator("#next")).to_contain_text(re.compile(r"[1-9]\d* of 100,000 tokens are used today"))
    answered(platform.http.post(f"{path}/abort", json={}), 200)
