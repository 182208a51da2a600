"""The admin's pages of usage, budgets, teams and decisions."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from mmserve.models import AccessKey
from routing import actions, rollup
from routing.core.records import USAGE_STREAM
from routing.models import Budget, Team
from tests.integration.api.test_usage import decision, keep
from tests.integration.routing.conftest import client, put, record

__all__ = ["client", "put"]

Put = Callable[..., None]


@pytest.fixture
def admin(ada: User) -> Client:
    found = Client()
    found.force_login(ada)
    return found


def test_the_usage_page_shows_days_models_keys_teams_and_routes(
    admin: Client, client: Any, put: Put, infer_key: tuple[AccessKey, str]
) -> None:
    put(
        record(key=str(infer_key[0].pk), cost_nano=2_500_000_000),
        record(served_id="big@2", team="", route="", cost_nano=10),
        record(served_id="", outcome="model_not_loaded", cost_nano=0, at=time.time() - 86_400),
        *[record(served_id=f"m{number}@1", cost_nano=1) for number in range(8)],
    )
    rollup.roll_up_all(client)
    page = admin.get("/admin/routing/usagehour/").content.decode()
    for shown in ("$2.50", "acme/echo", "search", "smart", "6 others"):
        assert shown in page, shown
    assert re.search(r"\n\s+app\n", page)  # a key by its name


def test_where_nothing_has_a_price_the_chart_is_of_tokens(
    admin: Client, client: Any, put: Put, infer_key: tuple[AccessKey, str]
) -> None:
    put(record(key=str(infer_key[0].pk), cost_nano=0, prompt_tokens=1200, completion_tokens=34))
    rollup.roll_up_all(client)
    page = html.unescape(admin.get("/admin/routing/usagehour/").content.decode())
    assert "Tokens by day, UTC" in page
    assert re.search(r'"data": \[[^]]*\b1234\b', page)


def test_a_usage_page_of_nothing_says_so(admin: Client, redis_url: str) -> None:
    page = admin.get("/admin/routing/usagehour/").content.decode()
    assert page.count("Nothing was used in these 30 days.") == 4


def test_records_that_were_turned_away_or_cannot_be_read_are_an_alarm_on_the_page(
    admin: Client, client: Any, db: None
) -> None:
    client.set("mmserve:usage:lost", 12)
    client.xadd(USAGE_STREAM, {"record": b"{"})
    rollup.roll_up_all(client)
    page = admin.get("/admin/routing/usagehour/").content.decode()
    assert "12 usage records were turned away" in page
    assert "1 usage records could not be read" in page


def test_a_budget_is_made_for_a_team_changed_and_shown_with_what_is_spent(
    admin: Client, client: Any, put: Put
) -> None:
    actions.create_team("search", actor="tests")
    form = {"whom": "team:search", "period": "day", "limit_usd": "10", "enabled": "on", "reason": "trial"}
    assert admin.post("/admin/routing/budget/add/", form).status_code == 302
    budget = Budget.objects.get()
    assert (budget.scope, budget.subject, budget.limit_usd) == ("team", "search", Decimal(10))
    again = admin.post("/admin/routing/budget/add/", form).content.decode()
    assert "There is a daily budget of team search already" in again
    put(record(cost_nano=2_500_000_000))
    rollup.roll_up_all(client)
    assert "$2.50 of $10" in admin.get("/admin/routing/budget/").content.decode()
    path = f"/admin/routing/budget/{budget.pk}/change/"
    assert admin.post(path, {"limit_usd": "20", "enabled": "on"}).status_code == 302
    budget.refresh_from_db()
    assert budget.limit_usd == 20
    assert "9000000" in admin.post(path, {"limit_usd": "9999999", "enabled": "on"}).content.decode()


def test_a_team_with_keys_is_not_deleted(admin: Client, infer_key: tuple[AccessKey, str]) -> None:
    team = actions.create_team("search", actor="tests")
    AccessKey.objects.update(team=team)
    page = admin.post(f"/admin/routing/team/{team.pk}/delete/", {"post": "yes"}, follow=True).content.decode()
    assert "has keys" in page
    assert Team.objects.exists()
    assert "search" in admin.get("/admin/mmserve/accesskey/").content.decode()


def test_decisions_are_listed_and_one_is_found_by_its_id(admin: Client, client: Any) -> None:
    keep(client, decision(1, predicted_ttft_s=0.4), decision(2))
    listed = admin.get("/admin/routing/decisions/").content.decode()
    assert listed.index("/decisions/d2/") < listed.index("/decisions/d1/")
    found = admin.get("/admin/routing/decisions/?id=d1", follow=True)
    page = found.content.decode()
    assert found.redirect_chain[-1][0] == "/admin/routing/decisions/d1/"
    for shown in ("no replica is ready", "balanced", "revision 4", "at most $0.000009", "400 ms", "500 ms"):
        assert shown in page, shown


def test_a_decision_says_which_replica_it_preferred_and_which_one_served(admin: Client, client: Any) -> None:
    why = "replica 7 has seen 9 of 10 blocks of the prompt"
    kept = {
        "replica": "8",
        "preferred": "7",
        "preferred_why": why,
        "prompt_tokens": 700,
        "cached_tokens": 640,
    }
    keep(client, decision(1, **kept), decision(2))
    page = admin.get("/admin/routing/decisions/d1/").content.decode()
    assert why in page
    assert "640 of 700" in page
    assert "from the cache" not in admin.get("/admin/routing/decisions/d2/").content.decode()


@pytest.mark.parametrize("name", ["gone", "../../x", "<script>"])
def test_a_decision_that_is_not_kept_is_said_in_words(admin: Client, client: Any, name: str) -> None:
    found = admin.get("/admin/routing/decisions/", {"id": name}, follow=True)
    assert "There is no decision" in found.content.decode()
    assert "<script>'" not in found.content.decode()


def test_decisions_and_usage_are_for_those_who_may_see_them(db: None, client: Any) -> None:
    bob = User.objects.create_user("bob", password="correct horse", is_staff=True)
    browser = Client()
    browser.force_login(bob)
    paths = ("/admin/routing/decisions/", "/admin/routing/decisions/d1/", "/admin/routing/usagehour/")
    assert {browser.get(path).status_code for path in paths} == {403}
    bob.user_permissions.add(*Permission.objects.filter(codename__in=["view_decisions", "view_usagehour"]))
    assert [browser.get(path).status_code for path in paths] == [200, 404, 200]
