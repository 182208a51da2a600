"""The registry's admin pages, each asked for as a person would; the browser tests look at some of them."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from registry import actions
from registry.models import Event, Model, ModelVersion, VersionState


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
        text_of(page.get(f"/admin/registry/modelversion/{path}"))


def test_a_model_is_described_and_its_risks_are_red(page: Client, ready: ModelVersion) -> None:
    path = f"/admin/registry/model/{ready.model_id}/change/"
    body = {
        "display_name": "Echo",
        "description": "**bold** <script>alert(1)</script>",
        "owner": "acme",
        "team": "search",
        "licence": "MIT",
        "tags": "eu, tier=gold",
        "links": '[{"title": "card", "url": "https://example.org"}]',
        "trust_remote_code": "on",
        "reason": "described",
        **{
            f"{name}-{kind}_FORMS": "0"
            for name in ("versions", "aliases")
            for kind in ("TOTAL", "INITIAL", "MIN_NUM", "MAX_NUM")
        },
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


def test_the_timeline_says_what_an_alias_meant(page: Client, ready: ModelVersion) -> None:
    actions.promote(ready, actor="ada", reason="first")
    path = f"/admin/registry/model/{ready.model_id}/history/"

    now = text_of(page.get(path))
    assert "production (default)" in now
    assert "alias.promoted" in now
    then = text_of(page.get(f"{path}?at=2020-01-01T00:00:00"))
    assert "It had no alias then." in then
    assert "is no date and time" in text_of(page.get(f"{path}?at=yesterday"))


def test_duplicate_verify_and_cancel_by_their_pages(page: Client, ready: ModelVersion) -> None:
    def act(name: str, pk: int, **body: Any) -> Any:
        return page.post(
            f"/admin/registry/modelversion/{pk}/{name}/", {"confirmed": "yes", **body}, follow=True
        )

    missing = text_of(act("duplicate", ready.pk, engine_options="{}"))
    assert "This field is required" in missing
    done = text_of(act("duplicate", ready.pk, label="2", engine_options='{"max_streams": 4}', reason="less"))
    assert "was duplicated" in done
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
