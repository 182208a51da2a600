"""What loads take is remembered, and what is not up is told to whoever waits for it."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from inference.models import Deployment, Replica
from inference.notify import connection
from inference.outlook import AT_MOST_EVERY_S, Outlook, remember_load
from inference.protocol import ASKED_KEY
from inference.reconcile import reconcile
from inference.status import statuses
from inference.swapping import Swapper
from tests.integration.test_swapping import Make, ask, device, load, make, stopped, up  # noqa: F401


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the controller says to the gateways."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr("inference.outlook.tell_gateways", found.append)
    return found


def test_the_wait_for_memory_is_part_of_what_a_load_took(
    make: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("inference.swapping.time.monotonic", lambda: now)
    a, b = make("a"), make("b")
    load(a)
    swapper = Swapper()
    reconcile(swapper)
    first = up(a)
    Deployment.objects.filter(pk=b.pk).update(replicas=1, asleep=True)
    ask(b)
    reconcile(swapper)
    now += 4.0
    stopped(first)
    reconcile(swapper)

    row = Replica.objects.get(deployment=b)
    assert row.waited_s == pytest.approx(4.0)
    Replica.objects.filter(pk=row.pk).update(started_at=row.created_at + datetime.timedelta(seconds=1))
    row.refresh_from_db()
    remember_load(row, row.created_at + datetime.timedelta(seconds=7))
    b.refresh_from_db()
    assert b.past_loads == [{"wait_s": 4.0, "fetch_s": 1.0, "load_s": 6.0}]
    assert b.usual_load_s == 7.0, "what it costs to be without it does not count others' drain"


def test_the_controller_tells_of_all_that_is_wished_for_and_not_up(
    make: Make,  # noqa: F811
    told: list[dict[str, Any]],
) -> None:
    a, b = make("a"), make("b")
    past = {"wait_s": 3.0, "fetch_s": 0.0, "load_s": 5.0}
    load(a)
    swapper = Swapper()
    reconcile(swapper)
    up(a)
    Deployment.objects.filter(pk=b.pk).update(replicas=1, asleep=True, past_loads=[past])
    reconcile(swapper, outlook=Outlook())
    assert told[-1]["deployments"] == {
        b.name: {
            "status": "asleep",
            "stage": "Others have its memory; a request wakes it.",
            "eta_s": 8.0,
            "done_bytes": None,
            "total_bytes": None,
        }
    }

    ask(b)
    reconcile(swapper, outlook=Outlook())
    found = told[-1]["deployments"]
    assert found[a.name]["status"] == "draining"
    assert (found[b.name]["status"], found[b.name]["stage"]) == ("loading", "waiting for memory")
    assert found[b.name]["eta_s"] == pytest.approx(8.0, abs=0.5)
    assert set(json.loads(connection().get(ASKED_KEY))) == {b.name}
    assert statuses([b.version])[b.version_id].stage == "waiting for memory"


def test_it_is_not_told_more_often_than_it_is_news(make: Make, told: list[dict[str, Any]]) -> None:  # noqa: F811
    load(make("a"))
    now = 100.0
    swapper, outlook = Swapper(), Outlook(lambda: now)
    for _ in range(5):
        reconcile(swapper, outlook=outlook)
    assert len(told) == 1
    now += 2 * AT_MOST_EVERY_S
    reconcile(swapper, outlook=outlook)
    assert len(told) == 2


def test_the_dashboard_counts_the_requests_that_are_held(make: Make) -> None:  # noqa: F811
    a, b = make("a"), make("b")
    load(a)
    reconcile(Swapper())
    Deployment.objects.filter(pk=b.pk).update(replicas=1, asleep=True)
    ask(b, 3)
    client = Client()
    client.force_login(User.objects.create_superuser("ada", password="correct horse"))
    figures = dict(client.get("/admin/").context["figures"])
    assert figures["Requests waiting"] == 3
