"""The routes' pages: the effect is shown, and a change is shown before it is made."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from registry.models import Event
from routing.actions.routes import create_route
from routing.actions.scorers import keep_scorer
from routing.core.training import Evaluation, Trained
from routing.models.routes import Route, TrainedScorer
from tests.integration.api.conftest import source
from tests.integration.routing.test_routes import lines, versions

__all__ = ["source", "versions"]
LIST = "/admin/routing/route/"
FORM = {
    "policy": "weighted",
    "enabled": "on",
    "description": "",
    "weight_quality": "0.4",
    "weight_cost": "0.2",
    "weight_latency": "0.3",
    "weight_load": "0.1",
    "hedge_percent": "2.5",
    "require": "",
    "reason": "as asked",
    "candidates-TOTAL_FORMS": "2",
    "candidates-INITIAL_FORMS": "0",
    "candidates-MIN_NUM_FORMS": "0",
    "candidates-MAX_NUM_FORMS": "200",
    "candidates-0-position": "1",
    "candidates-0-target": "acme/large",
    "candidates-0-weight": "3",
    "candidates-1-position": "0",
    "candidates-1-target": "acme/small",
    "candidates-1-weight": "1",
}


@pytest.fixture
def admin(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("ada", password="correct horse"))
    return client


def hidden(page: str) -> dict[str, str]:
    """The fields of the preview's form, as a browser would send them with its button."""
    found = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page))
    return {**found, "_confirmed": "yes"}


def test_a_new_route_is_shown_first_and_made_when_that_is_confirmed(admin: Client, versions: Any) -> None:
    shown = admin.post(LIST + "add/", {**FORM, "name": "fast"})
    page = shown.content.decode()
    assert shown.status_code == 200
    assert "Nobody has asked for it lately" in page
    assert "acme/large@1" in page
    assert "nobody: refused" in page  # no replica runs, but both can be loaded
    assert not Route.objects.exists()

    made = admin.post(LIST + "add/", hidden(page))
    assert made.status_code == 302, made.content.decode()
    route = Route.objects.get()
    assert [(line.target, line.weight) for line in route.candidates.all()] == [
        ("acme/small", 1.0),
        ("acme/large", 3.0),
    ]
    event = Event.objects.filter(kind="route.created").get()
    assert (event.actor, event.reason) == ("user:ada", "as asked")


def test_a_change_shows_the_traffic_that_it_moves(admin: Client, versions: Any) -> None:
    route = create_route("fast", actor="tests", policy="priority", candidates=lines("acme/large"))
    page = admin.get(f"{LIST}{route.pk}/change/")
    assert b"What it does now" in page.content
    assert b"must load first" in page.content
    line = route.candidates.get()
    body = {
        **FORM,
        "policy": "priority",
        "expected_revision": "1",
        "candidates-TOTAL_FORMS": "2",
        "candidates-INITIAL_FORMS": "1",
        "candidates-0-id": str(line.pk),
        "candidates-0-route": str(route.pk),
        "candidates-1-route": str(route.pk),
    }
    shown = admin.post(f"{LIST}{route.pk}/change/", body)
    text = shown.content.decode()
    assert "1000 would be served by another version" in text, text
    assert Route.objects.get().revision == 1

    assert admin.post(f"{LIST}{route.pk}/change/", hidden(text)).status_code == 302
    changed = Route.objects.get()
    assert changed.revision == 2
    assert [row.target for row in changed.candidates.all()] == ["acme/small", "acme/large"]


def test_a_wrong_candidate_comes_back_with_the_form(admin: Client, versions: Any) -> None:
    answer = admin.post(LIST + "add/", {**FORM, "name": "fast", "candidates-0-target": "nobody"})
    assert answer.status_code == 200
    assert "There is no model" in answer.content.decode()
    assert not Route.objects.exists()


def test_somebody_elses_change_is_not_overwritten(admin: Client, versions: Any) -> None:
    route = create_route("fast", actor="tests", candidates=lines("acme/large"))
    from routing.actions.routes import update_route

    update_route(route, actor="bob", description="mine")
    line = Route.objects.get().candidates.get()
    body = {
        **FORM,
        "_confirmed": "yes",
        "expected_revision": "1",
        "candidates-INITIAL_FORMS": "1",
        "candidates-0-id": str(line.pk),
        "candidates-0-route": str(route.pk),
        "candidates-1-route": str(route.pk),
    }
    answer = admin.post(f"{LIST}{route.pk}/change/", body)
    assert "bob changed it" in answer.content.decode()
    assert Route.objects.get().description == "mine"


def test_a_scorers_page_shows_its_weights_and_puts_it_to_use(admin: Client, db: None) -> None:
    trained = Trained(
        weights={"acme/large@1": (1.25, 0, 0, 2.5, 0, 0, 0, 0)},
        evaluation=Evaluation(rows=100, versions=1, loss=0.5, mean_loss=0.6),
        left_out={"few@1": 3},
    )
    row = keep_scorer(trained, actor="tests")
    page = admin.get(f"/admin/routing/trainedscorer/{row.pk}/change/").content.decode()
    assert "acme/large@1" in page
    assert "2.50" in page
    assert "log_loss_of_the_average" in page
    used = admin.post(f"/admin/routing/trainedscorer/{row.pk}/use/", {"confirmed": "yes", "reason": "better"})
    assert used.status_code == 302
    assert TrainedScorer.objects.get().in_use
    assert Event.objects.filter(kind="scorer.used").get().reason == "better"
