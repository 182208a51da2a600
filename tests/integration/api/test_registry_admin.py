"""The registry's admin pages, each asked for as a person would; the browser tests look at some of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from inference.actions import configure, ensure_deployment
from registry import actions
from registry.models import Alias, Event, Model, ModelVersion, VersionState

NO_INLINES = {
    f"{name}-{kind}_FORMS": "0"
    for name in ("versions", "aliases")
    for kind in ("TOTAL", "INITIAL", "MIN_NUM", "MAX_NUM")
}


@pytest.fixture
def page(ada: User, client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    monkeypatch.setattr(actions.versions, "_enqueue_verify", lambda *args: None)
    client.force_login(ada)
    return client


def text_of(response: Any) -> str:
    assert response.status_code == 200
    return str(response.content.decode())


@pytest.mark.parametrize("state", list(VersionState))
def test_every_page_of_a_version_in_every_state(page: Client, ready: ModelVersion, state: str) -> None:
    progress = {"stage": "fetch", "done_bytes": 5, "total_bytes": 10, "eta_s": 1.0, "files": []}
    ModelVersion.objects.filter(pk=ready.pk).update(state=state, progress=progress)

    for path in ("", f"{ready.pk}/change/", "add/", f"{ready.pk}/history/"):
        text_of(page.get(f"/admin/registry/modelversion/{path}", follow=True))


@pytest.mark.parametrize("where", ["deployment", "arm"])
def test_a_version_is_found_by_the_id_that_pages_show(page: Client, ready: ModelVersion, where: str) -> None:
    asked = {
        "app_label": {"deployment": "inference", "arm": "routing"}[where],
        "model_name": where,
        "field_name": "version",
    }
    for term, found in ((ready.served_id, [str(ready.pk)]), ("acme/other@1", [])):
        answer = page.get("/admin/autocomplete/", {**asked, "term": term})
        assert [one["id"] for one in answer.json()["results"]] == found


def test_a_model_is_described_and_its_risks_are_red(page: Client, ready: ModelVersion) -> None:
    path = f"/admin/registry/model/{ready.model_id}/change/"
    body = {
        "display_name": "Echo",
        "description": "**bold** <script>alert(1)</script>",
        "owner": "acme",
        "team": "search",
        "licence": "MIT",
        "tags": "eu, tier=gold",
        "links": "card https://example.org",
        "trust_remote_code": "on",
        "reason": "described",
        **NO_INLINES,
    }
    assert page.post(path, body).status_code == 302, "the form was refused"

    model = Model.objects.get()
    assert (model.tags, model.team, model.trust_remote_code) == (["eu", "tier=gold"], "search", True)
    text = text_of(page.get(path))
    assert "<strong>bold</strong>" in text
    assert "<script>alert(1)" not in text
    for shown in (
        text,
        text_of(page.get("/admin/registry/model/")),
        text_of(page.get(f"/admin/registry/modelversion/{ready.pk}/change/")),
    ):
        assert "bg-red-100" in shown
        assert "remote code" in shown


def test_a_models_chain_is_edited_on_its_page(page: Client, ready: ModelVersion) -> None:
    other = actions.register_model("acme/small", actor="tests")
    path = f"/admin/registry/model/{ready.model_id}/change/"
    body = {"owner": "acme", "fallbacks": "acme/small, acme/echo@1", "no_fallback_on": ["budget", "breaker"]}

    refused = text_of(page.post(path, {**body, "fallbacks": "acme/small, acme/gone", **NO_INLINES}))
    assert "There is no model &#x27;acme/gone&#x27;" in refused
    assert "fallbacks: There" not in refused
    assert 'value="acme/small, acme/gone"' in refused
    assert "stands twice" in text_of(page.post(path, {**body, "fallbacks": "b, b", **NO_INLINES}))
    assert page.post(path, {**body, "first_token_ms": "800", **NO_INLINES}).status_code == 302

    model = Model.objects.get(name="acme/echo")
    assert (model.fallbacks, model.first_token_ms) == (["acme/small", "acme/echo@1"], 800)
    assert sorted(model.no_fallback_on) == ["breaker", "budget"]
    events = Event.objects.count()
    text = text_of(page.get(path))
    assert 'dark:text-red-400">It has no default version.<' in text
    assert text.count("checked") >= 2
    assert page.post(path, {**body, "first_token_ms": "800", **NO_INLINES}).status_code == 302
    assert Event.objects.count() == events

    actions.delete_model(other, actor="tests")
    assert "There is no model &#x27;acme/small&#x27;" in text_of(page.get(path))

    made = {"name": "acme/new", "owner": "acme", "fallbacks": "acme/echo", **NO_INLINES}
    assert page.post("/admin/registry/model/add/", made).status_code == 302
    assert Model.objects.get(name="acme/new").fallbacks == ["acme/echo"]


def test_the_timeline_says_what_an_alias_meant(page: Client, ready: ModelVersion) -> None:
    actions.promote(ready, actor="ada", reason="first")
    path = f"/admin/registry/model/{ready.model_id}/history/"

    now = text_of(page.get(path))
    assert "production (default)" in now
    assert "alias.promoted" in now
    then = text_of(page.get(f"{path}?at=2020-01-01T00:00:00"))
    assert "It had no alias then." in then
    assert "is no date and time" in text_of(page.get(f"{path}?at=yesterday"))


def test_the_history_of_a_version_and_of_an_alias_is_the_models_timeline(
    page: Client, ready: ModelVersion
) -> None:
    alias = actions.promote(ready, actor="ada", reason="first")

    for path in (f"modelversion/{ready.pk}", f"alias/{alias.pk}"):
        shown = text_of(page.get(f"/admin/registry/{path}/history/", follow=True))
        assert "Timeline of acme/echo" in shown
    assert page.get("/admin/registry/alias/99/history/").status_code == 404


def test_duplicate_verify_and_cancel_by_their_pages(page: Client, ready: ModelVersion) -> None:
    def act(name: str, pk: int, **body: Any) -> Any:
        return page.post(
            f"/admin/registry/modelversion/{pk}/{name}/", {"confirmed": "yes", **body}, follow=True
        )

    missing = text_of(act("duplicate", ready.pk, engine_options="{}"))
    assert "This field is required" in missing
    done = text_of(act("duplicate", ready.pk, label="2", engine_options='{"max_streams": 4}', reason="less"))
    assert "is a duplicate of acme/echo@1" in done
    twin = ModelVersion.objects.get(version="2")
    assert (twin.engine_options, twin.state) == ({"max_streams": 4}, "ready")
    refused = text_of(act("duplicate", ready.pk, label="3", engine_options='{"colour": 4}'))
    assert "engine_options" in refused

    assert "being verified" in text_of(act("verify", ready.pk))
    assert Event.objects.filter(kind="version.verifying").count() == 1

    ModelVersion.objects.filter(pk=twin.pk).update(state=VersionState.FETCHING)
    assert "was cancelled" in text_of(act("cancel", twin.pk, reason="no"))
    twin.refresh_from_db()
    assert twin.state == "failed"


def test_a_promotion_moves_the_alias_that_was_seen_and_tells_who_was_first(
    page: Client, ready: ModelVersion
) -> None:
    actions.promote(ready, actor="ada")
    twin = actions.duplicate_version(ready, "2", actor="tests")
    path = f"/admin/registry/modelversion/{twin.pk}/promote/"
    shown = text_of(page.get(path))
    assert "Now production (default) means 1; another name makes another alias." in shown
    seen = json.dumps({"production": 1})
    again = actions.duplicate_version(ready, "3", actor="tests")
    actions.promote(again, actor="bob")

    late = text_of(page.post(path, {"alias": "production", "seen": seen, "reason": ""}, follow=True))
    assert "is at revision 2, not 1, and means 3 now: bob moved it" in late
    assert "is at revision 2, not 0" in text_of(
        page.post(path, {"alias": "production", "seen": "{}"}, follow=True)
    )

    done = text_of(page.post(path, {"alias": "candidate", "seen": "{}"}, follow=True))
    assert "acme/echo@candidate means acme/echo@2 now." in done
    assert {alias.name: alias.version.version for alias in Alias.objects.all()} == {
        "production": "3",
        "candidate": "2",
    }


def test_a_rollback_says_where_to_and_is_refused_to_who_saw_another_state(
    page: Client, ready: ModelVersion
) -> None:
    alias = actions.promote(ready, actor="ada")
    path = f"/admin/registry/alias/{alias.pk}/rollback/"
    assert "goes back to nothing: it has meant no other" in text_of(page.get(path))
    actions.promote(actions.duplicate_version(ready, "2", actor="tests"), actor="bob")
    assert "It means 2 now, and goes back to 1." in text_of(page.get(path))

    assert "is at revision 2, not 1" in text_of(page.post(path, {"expected_revision": 1}, follow=True))
    assert "means 1 again" in text_of(page.post(path, {"expected_revision": 2}, follow=True))


def test_links_are_typed_one_a_line_and_shown_to_be_opened(page: Client, ready: ModelVersion) -> None:
    path = f"/admin/registry/model/{ready.model_id}/change/"
    body = {"owner": "mmserve", "links": "Model card https://example.org/card\nhttps://example.org/x"}
    body |= NO_INLINES

    shown = text_of(page.post(path, body, follow=True))
    assert ready.model.name in shown
    links = [{"title": "Model card", "url": "https://example.org/card"}]
    assert Model.objects.get().links == [
        *links,
        {"title": "https://example.org/x", "url": "https://example.org/x"},
    ]
    shown = text_of(page.get(path))
    assert 'href="https://example.org/card" target="_blank" rel="noopener noreferrer">Model card</a>' in shown
    wrong = text_of(page.post(path, {**body, "links": "x javascript:alert(1)"}))
    assert "is no http or https address" in wrong


def test_events_say_from_what_to_what(page: Client, ready: ModelVersion) -> None:
    actions.promote(ready, actor="ada")
    twin = actions.duplicate_version(ready, "2", actor="tests")
    actions.promote(twin, actor="ada")
    actions.update_version(twin, actor="ada", price_input="0.2")

    deployment = ensure_deployment(ready, actor="tests")
    configure(deployment, {"max_streams": 4, "pinned": True, "deadline_s": 600}, actor="ada")

    timeline = text_of(page.get(f"/admin/registry/model/{ready.model_id}/history/"))
    listed = text_of(page.get("/admin/registry/event/"))
    assert "max_streams: 64 → 4, pinned: no → yes" in listed
    for words in ("1 → 2", "– → 1", "price_input: – → 0.2"):
        assert words in timeline
        assert words in listed


def test_a_page_looks_again_while_files_arrive_and_a_list_does_not(page: Client, ready: ModelVersion) -> None:
    progress = {"stage": "fetch", "done_bytes": 1, "total_bytes": 4, "bytes_per_s": 2048, "eta_s": 3.0}
    files = [{"path": "m.safetensors", "done_bytes": 1, "total_bytes": 4}]
    ModelVersion.objects.filter(pk=ready.pk).update(
        state=VersionState.FETCHING, progress={**progress, "files": files}
    )

    own = text_of(page.get(f"/admin/registry/modelversion/{ready.pk}/change/"))
    assert "fetch, 1 B of 4 B, 2.0 KiB/s, 3 s left" in own
    assert "m.safetensors: 4 B" in own
    assert "DOMParser" in own
    assert "DOMParser" not in text_of(page.get("/admin/registry/modelversion/"))
