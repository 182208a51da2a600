"""Preload and schedules over real rows, through REST and the admin; the clock is an argument."""

# ruff: noqa: F401, F811 - fixtures are imported by their names

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from rest_framework.test import APIClient

from inference import actions as serving
from inference.capacity.eta import PastLoad, with_one_more
from inference.models import Deployment, Replica
from inference.reconcile import reconcile
from inference.schedules import keep_hot
from inference.swapping import Swapper
from registry.models import Event
from tests.integration.api.conftest import ada, manage_key, manager
from tests.integration.test_swapping import Make, ask, device, load, make, states, up

OFFICE = {"days": "mon-fri", "start": "08:00", "end": "18:00", "timezone": "Europe/Berlin"}


def at(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)


BEFORE, OPEN, NOON, CLOSED = map(
    at, ("2026-01-05T06:00:00", "2026-01-05T06:59:50", "2026-01-05T11:00:00", "2026-01-05T17:00:01")
)


@pytest.fixture
def hot(make: Make) -> Deployment:
    deployment = make("a", idle_ttl_s=1)
    serving.set_schedules(
        deployment,
        [
            {
                "days": "mon-fri",
                "start": datetime.time(8),
                "end": datetime.time(18),
                "timezone": "Europe/Berlin",
            }
        ],
        actor="tests",
    )
    return deployment


def wish(deployment: Deployment) -> tuple[int, bool, bool]:
    """Replicas wished for, asleep, kept hot."""
    row = Deployment.objects.get(pk=deployment.pk)
    return row.replicas, row.asleep, row.hot_since is not None


def test_a_window_loads_before_it_opens_and_pins_until_it_closes(
    hot: Deployment,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_hot(BEFORE)
    assert wish(hot) == (0, False, False)
    keep_hot(OPEN)  # a load's time before eight
    assert wish(hot) == (1, False, True)
    assert Event.objects.filter(kind="deployment.hot", subject=hot.name).count() == 1

    monkeypatch.setattr("inference.reconcile.keep_hot", lambda _now: keep_hot(NOON))
    now = 1000.0
    monkeypatch.setattr("inference.swapping.time.monotonic", lambda: now)
    swapper = Swapper()
    reconcile(swapper)
    up(hot)
    now += 3600
    other = make("b")
    Deployment.objects.filter(pk=other.pk).update(replicas=1, asleep=True)
    ask(other)
    for _ in range(3):
        reconcile(swapper)
    assert states() == {"a": (False, 1), "b": (True, 0)}, "neither its idle time nor another's need ends it"

    keep_hot(CLOSED)
    assert wish(hot) == (1, False, False)
    assert Event.objects.filter(kind="deployment.no_longer_hot").exists()
    monkeypatch.setattr("inference.reconcile.keep_hot", lambda _now: keep_hot(CLOSED))
    now += 3600
    reconcile(swapper)
    assert states()["a"][0], "now others may have its place"


def test_the_lead_is_what_its_loads_have_taken(hot: Deployment) -> None:
    loads = with_one_more([], PastLoad(wait_s=1000.0, fetch_s=0.0, load_s=400.0))
    Deployment.objects.filter(pk=hot.pk).update(past_loads=loads)
    keep_hot(at("2026-01-05T06:51:00"))
    assert wish(hot)[2] is False
    keep_hot(at("2026-01-05T06:52:00"))
    assert wish(hot)[2] is True


def test_what_an_operator_unloads_in_its_window_stays_so_until_the_next_one(hot: Deployment) -> None:
    keep_hot(NOON)
    serving.unload(hot.version, actor="tests")
    keep_hot(NOON + datetime.timedelta(minutes=1))
    assert wish(hot)[0] == 0
    keep_hot(CLOSED)
    keep_hot(NOON + datetime.timedelta(days=1))
    assert wish(hot)[0] == 1


def test_a_schedule_that_is_taken_away_ends_at_once(hot: Deployment) -> None:
    keep_hot(NOON)
    serving.set_schedules(hot, [], actor="tests")
    keep_hot(NOON)
    assert wish(hot) == (1, False, False)


def test_schedules_are_edited_over_rest(manager: APIClient, make: Make) -> None:
    path = f"/v1/registry/deployments/{make('a').pk}"
    body = {
        "schedules": [OFFICE, {"days": "sat", "start": "22:00:00", "end": "02:00:00"}],
        "reason": "office",
    }
    answer = manager.patch(path, body, format="json")
    assert answer.status_code == 200, answer.json()
    assert [row["days"] for row in answer.json()["schedules"]] == ["mon-fri", "sat"]
    assert manager.get(path).json()["schedules"][1]["timezone"] == "UTC"
    assert Event.objects.filter(kind="deployment.scheduled", reason="office").exists()
    assert manager.patch(path, {"max_streams": 8}, format="json").json()["schedules"], "others are left alone"
    assert manager.patch(path, {"schedules": []}, format="json").json()["schedules"] == []


@pytest.mark.parametrize(
    "row",
    [
        {**OFFICE, "days": "someday"},
        {**OFFICE, "timezone": "Mars/Olympus"},
        {**OFFICE, "timezone": "../../etc/passwd"},
        {**OFFICE, "start": "25:00"},
        {**OFFICE, "colour": "red"},
        {"days": "mon"},
        "mon",
    ],
)
def test_a_bad_schedule_is_refused_by_name(manager: APIClient, make: Make, row: Any) -> None:
    answer = manager.patch(f"/v1/registry/deployments/{make('a').pk}", {"schedules": [row]}, format="json")
    assert answer.status_code == 400, answer.json()
    assert answer.json()["error"]["param"].startswith("schedules")


@pytest.mark.parametrize("prompts", [["x"] * 9, [""], ["x" * 2001], "x", [1], {"a": 1}])
def test_bad_warm_up_prompts_are_refused_by_name(manager: APIClient, make: Make, prompts: Any) -> None:
    answer = manager.patch(
        f"/v1/registry/deployments/{make('a').pk}", {"warmup_prompts": prompts}, format="json"
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("warmup_prompts")


def test_schedules_are_edited_on_the_deployments_page(ada: User, client: Client, make: Make) -> None:
    row = make("a")
    client.force_login(ada)
    path = f"/admin/inference/deployment/{row.pk}/change/"
    page = client.get(path)
    form = page.context["adminform"].form
    body = {name: form[name].value() for name in form.fields if form[name].value() is not None}
    body = {name: value for name, value in body.items() if value is not False}
    body["warmup_prompts"] = '["Hello"]'
    inline = {
        "schedules-TOTAL_FORMS": "1",
        "schedules-INITIAL_FORMS": "0",
        "schedules-0-days": "mon-fri",
        "schedules-0-start": "08:00",
        "schedules-0-end": "18:00",
        "schedules-0-timezone": "Europe/Berlin",
        "replica_set-TOTAL_FORMS": "0",
        "replica_set-INITIAL_FORMS": "0",
    }
    answer = client.post(path, {**body, **inline, "reason": "office"})
    assert answer.status_code == 302, answer.context["errors"]
    [made] = row.schedules.all()
    assert str(made) == "mon-fri 08:00–18:00 Europe/Berlin"
    assert Deployment.objects.get(pk=row.pk).warmup_prompts == ["Hello"]
    assert Event.objects.filter(kind="deployment.scheduled", actor="user:ada", reason="office").exists()

    bad = {**inline, "schedules-0-timezone": "Mars/Olympus"}
    again = client.post(path, {**body, **bad})
    assert again.status_code == 200
    assert "is no time zone" in again.content.decode()

    gone = {
        **inline,
        "schedules-INITIAL_FORMS": "1",
        "schedules-0-id": str(made.pk),
        "schedules-0-deployment": str(row.pk),
        "schedules-0-DELETE": "on",
    }
    assert client.post(path, {**body, **gone}).status_code == 302
    assert not row.schedules.exists()


def test_what_is_preloaded_is_wished_for_at_a_start_and_comes_before_the_others(make: Make) -> None:
    a, b = make("a", kv_cache_bytes=2**20), make("b", kv_cache_bytes=2**20, preload=True)
    load(a)
    Deployment.objects.filter(pk=b.pk).update(replicas=0, failure="given up after 5 tries: no memory")
    serving.preload(actor="node here")
    serving.preload(actor="node here")
    assert wish(b)[:2] == (1, False)
    assert Deployment.objects.get(pk=b.pk).failure == ""
    assert Event.objects.filter(kind="deployment.preload").count() == 1

    reconcile()
    assert [row.deployment_id for row in Replica.objects.all()] == [b.pk], "a waits until b is up"
    up(b)
    reconcile()
    assert Replica.objects.count() == 2
