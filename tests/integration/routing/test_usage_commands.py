"""Reports and budgets from the command line."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command

from mmserve.key_actions import create_key
from mmserve.models import AccessKey
from registry.models import Event
from routing import rollup
from routing.models import Budget
from routing.spending import budget_entries
from tests.integration.registry.test_commands import refused, run
from tests.integration.routing.conftest import record


@pytest.fixture
def key(db: None) -> AccessKey:
    ada = User.objects.create_superuser("ada", password="correct horse")
    return create_key(name="app", user=ada, actor="tests")[0]


def test_usage_report_sums_by_what_is_asked(client: Any, put: Any, key: AccessKey) -> None:
    put(
        record(key=str(key.pk), cost_nano=1_500_000_000),
        record(key=str(key.pk), served_id="big@2", route="", cost_nano=250_000_000),
        record(key="gone", served_id="big@2", outcome="queue_full", count=3, cost_nano=0),
    )
    rollup.roll_up_all(client)
    by_key = run("usage_report", "--by", "key")
    assert [(row["key_name"], row["requests"], row["cost_usd"]) for row in by_key["data"]] == sorted(
        [("app", 2, "1.75"), (None, 3, "0")], key=lambda row: str(key.pk) if row[0] else "gone"
    )
    assert (by_key["total"]["cost_usd"], by_key["total"]["errors"]) == ("1.75", 3)
    (one,) = run("usage_report", "--by", "day,version", "--where", "version=big@2", "--since", "1d")["data"]
    assert (one["version"], one["requests"], one["cost_usd"]) == ("big@2", 4, "0.25")
    assert run("usage_report", "--until", "10d")["data"] == []


def test_usage_report_for_people_ends_with_the_total(client: Any, put: Any, key: AccessKey) -> None:
    put(record(cost_nano=7), record(cost_nano=8, served_id="big@2"))
    rollup.roll_up_all(client)
    out = io.StringIO()
    call_command("usage_report", "--by", "model", stdout=out)
    head, *rows = out.getvalue().splitlines()
    assert head.split() == [
        "MODEL", "REQUESTS", "ERRORS", "PROMPT_TOKENS", "CACHED_TOKENS", "COMPLETION_TOKENS", "COST_USD",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == ["acme/echo", "big", "total"]
    assert rows[-1].split()[-1] == "0.000000015"


@pytest.mark.parametrize(
    "arguments",
    [("--by", "prompt"), ("--by", "key,key"), ("--since", "yesterday"), ("--limit", "0"), ("--where", "a=b")],
)
def test_usage_report_refuses_what_cannot_be(arguments: tuple[str, str], db: None) -> None:
    code, words = refused("usage_report", *arguments)
    assert code == 5
    assert arguments[0].removeprefix("--") in words


def test_budget_set_makes_changes_and_deletes_and_budget_list_shows(
    client: Any, put: Any, key: AccessKey
) -> None:
    run("team_create", "search", "--description", "finds things")
    made = run("budget_set", "team", "search", "10", "--period", "day")
    assert made == {
        "scope": "team", "subject": "search", "name": "search", "period": "day", "limit_usd": "10", "spent_usd": "0",
        "held_usd": "0", "enabled": True,
    }  # fmt: skip
    put(record(cost_nano=2_500_000_000))
    rollup.roll_up_all(client)
    run("budget_set", "team", "search", "7.5", "--period", "day", "--reason", "less")
    run("budget_set", "key", str(key.pk), "1")
    assert run("budget_set", "key", "app", "2")["subject"] == str(key.pk)
    shown = {row["scope"]: row for row in run("budget_list")}
    assert (shown["key"]["name"], shown["key"]["limit_usd"]) == ("app", "2")
    assert (shown["team"]["limit_usd"], shown["team"]["spent_usd"]) == ("7.5", "2.5")
    event = Event.objects.get(kind="budget.changed", subject="daily budget of team search")
    assert (event.reason, event.data["limit_usd"]) == ("less", "7.5")
    run("budget_set", "team", "search", "none", "--period", "day")
    assert [row.scope for row in Budget.objects.all()] == ["key"]


def test_a_name_that_two_keys_have_is_refused_with_their_ids(key: AccessKey) -> None:
    twin, _ = create_key(name="app", user=key.user, actor="tests")
    code, words = refused("budget_set", "key", "app", "1")
    assert code == 4
    assert str(twin.pk) in words
    assert str(key.pk) in words
    assert not Budget.objects.exists()


def test_clients_are_told_a_budgets_key_by_its_name(key: AccessKey) -> None:
    run("budget_set", "key", "app", "1")
    [entry] = budget_entries()
    assert (entry.name, entry.subject) == ("monthly budget of key app", str(key.pk))


@pytest.mark.parametrize(
    ("scope", "subject", "limit", "word"),
    [
        ("team", "nobody", "1", "no team"),
        ("key", "not-a-key", "1", "no access key"),
        ("team", "search", "many", "limit_usd"),
        ("team", "search", "-1", "limit_usd"),
        ("team", "search", "NaN", "limit_usd"),
        ("team", "search", "10000000", "limit_usd"),
    ],
)
def test_budget_set_refuses_what_cannot_be(
    scope: str, subject: str, limit: str, word: str, key: AccessKey
) -> None:
    run("team_create", "search")
    arguments = ("--", scope, subject, limit) if limit.startswith("-") else (scope, subject, limit)
    code, words = refused("budget_set", *arguments)
    assert code == 5
    assert word in words


def test_a_team_of_that_name_is_refused_the_second_time(db: None) -> None:
    run("team_create", "search")
    assert refused("team_create", "search")[0] == 4


def test_key_create_takes_a_team(key: AccessKey) -> None:
    run("team_create", "search")
    run("key_create", "theirs", "--team", "search")
    made = AccessKey.objects.get(name="theirs")
    assert made.team is not None
    assert made.team.name == "search"
    assert refused("key_create", "other", "--team", "nobody")[0] == 3
