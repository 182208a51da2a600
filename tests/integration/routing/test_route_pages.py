"""The routes' pages: the effect is shown, and a change is shown before it is made."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from django.contrib.auth.models import User
from django.test import Client

from registry.models import Event
from routing.actions.routes import create_route
from routing.actions.scorers import keep_scorer
from routing.core.decision import Explanation, RequestFacts
from routing.core.records import DECISIONS_KEY, DecisionRecord, decision_key
from routing.core.training import Evaluation, Trained
from routing.models.routes import Route, TrainedScorer
from tests.integration.api.conftest import source
from tests.integration.routing.conftest import client
from tests.integration.routing.test_routes import lines, versions

__all__ = ["client", "source", "versions"]
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
    assert "It is new. Of 1000 usual requests, these would serve" in page
    assert "acme/large@1" in page
    assert "nobody: refused" not in page  # no replica runs, but both can be loaded
    assert "As it is" not in page
    tables = page[page.index('id="route-preview"') :]
    assert "0 ms" not in tables, "nothing was measured yet"
    shares = re.findall(r"(\d+\.\d)%", tables)
    assert len(shares) == 4
    assert len(set(shares)) == 2, "the same in both tables"
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
    shares = text[text.index('id="shares"') : text.index('id="figures"')]
    assert re.findall(r">([a-z/@\d]+|[\d.]+%)</td>", shares) == [
        *("acme/small@1", "0.0%", "100.0%"),
        *("acme/large@1", "100.0%", "0.0%"),
    ]
    assert Route.objects.get().revision == 1

    assert admin.post(f"{LIST}{route.pk}/change/", hidden(text)).status_code == 302
    changed = Route.objects.get()
    assert changed.revision == 2
    assert [row.target for row in changed.candidates.all()] == ["acme/small", "acme/large"]


def test_a_change_is_tried_out_on_the_routes_own_decisions_however_rarely_it_is_asked(
    admin: Client, versions: Any, client: Any
) -> None:
    route = create_route("fast", actor="tests", policy="priority", candidates=lines("acme/large"))
    for number in range(2000):
        kept = decision(number, model="fast" if number < 3 else "acme/large")
        client.set(decision_key(kept.id), msgspec.json.encode(kept))
        client.zadd(DECISIONS_KEY, {kept.id: number})
    line = route.candidates.get()
    body = {
        **FORM,
        "policy": "priority",
        "expected_revision": "1",
        "candidates-INITIAL_FORMS": "1",
        "candidates-0-id": str(line.pk),
        "candidates-0-route": str(route.pk),
        "candidates-1-route": str(route.pk),
    }
    text = admin.post(f"{LIST}{route.pk}/change/", body).content.decode()
    assert "Of its last 3 requests, 3 would be served by another version" in text, text


def decision(number: int, *, model: str) -> DecisionRecord:
    """Of a request for a model id that an engine has answered."""
    made = Explanation(
        id=f"d{number}", revision=1, model=model, route=None, policy="priority", served_id="acme/large@1",
        chosen="large", chain=(), candidates=(),
    )  # fmt: skip
    facts = RequestFacts(decision_id=f"d{number}", model=model, max_tokens=16)
    return DecisionRecord(id=f"d{number}", at=float(number), key="k", facts=facts, decision=made)


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


def test_all_that_is_wrong_is_told_at_once_and_at_the_top(admin: Client, versions: Any) -> None:
    wrong = {**FORM, "name": "fast", "hedge_percent": "-1", "candidates-1-target": "acme/smal"}
    page = admin.post(LIST + "add/", wrong).content.decode()
    top = page[: page.index('name="name"')]
    assert "Please correct:" in top
    assert re.search(r"Most hedged requests \(%\)</a>: Ensure this value", top)
    assert re.search(r"Candidate 2, <a [^>]*>model</a>: There is no model", top)
    assert "acme/small" in top, "a near name is offered"


@pytest.mark.parametrize(("count", "weight", "words"), [("0", "1", "needs one"), ("1", "0", "above 0")])
def test_a_route_that_could_choose_nobody_is_refused_by_its_form(
    admin: Client, versions: Any, count: str, weight: str, words: str
) -> None:
    form = {**FORM, "name": "fast", "candidates-TOTAL_FORMS": count, "candidates-0-weight": weight}
    page = admin.post(LIST + "add/", form).content.decode()
    assert re.search(rf"<li>Candidates: [^<]*{words}", page)
    assert not Route.objects.exists()


def test_a_weight_of_nothing_is_pointed_at(admin: Client, versions: Any) -> None:
    route = create_route(
        "fast", actor="tests", policy="priority", candidates=[{"target": "acme/large", "weight": 0}]
    )
    page = admin.get(f"{LIST}{route.pk}/change/").content.decode()
    assert "Weight 0: acme/large is chosen all the same" in page
