"""``/v1/registry``: rows through actions, by cursor, strict."""

from __future__ import annotations

from typing import Any

import pytest
from rest_framework.test import APIClient

from mmserve.models import AccessKey
from registry import actions
from registry.models import Alias, Event, Model, ModelVersion
from tests.integration.api.conftest import client_with, make_ready


def error_of(response: Any) -> tuple[int, str | None, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["param"], error["message"]


def test_a_model_is_registered_described_and_deleted(manager: APIClient) -> None:
    made = manager.post("/v1/registry/models", {"name": "acme/echo", "reason": "demo"}, format="json")
    assert made.status_code == 201
    path = f"/v1/registry/models/{made.json()['id']}"
    assert "reason" not in made.json()
    assert manager.patch(path, {"licence": "MIT"}, format="json").json()["licence"] == "MIT"
    assert manager.delete(path).status_code == 204

    events = Event.objects.filter(actor="key:ops").values_list("kind", "reason")
    assert list(events) == [("model.deleted", ""), ("model.updated", ""), ("model.registered", "demo")]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "ok", "colour": "red"}, "colour"),
        ({"name": ["ok"]}, "name"),
        ({"name": 7}, "name"),
    ],
)
def test_a_wrong_model_names_its_field(manager: APIClient, body: dict[str, Any], param: str) -> None:
    status, found, _ = error_of(manager.post("/v1/registry/models", body, format="json"))

    assert (status, found) == (400, param)


def test_a_model_gets_a_chain_and_keeps_its_history(manager: APIClient, ready: ModelVersion) -> None:
    actions.register_model("acme/small", actor="tests")
    path = f"/v1/registry/models/{ready.model_id}"
    chain = {
        "fallbacks": ["acme/small", "acme/echo@1"],
        "first_token_ms": 1500,
        "no_fallback_on": ["breaker", "budget"],
    }

    made = manager.patch(path, {**chain, "reason": "nights"}, format="json")

    assert made.status_code == 200, made.content
    assert {name: manager.get(path).json()[name] for name in chain} == chain
    event = Event.objects.first()
    assert event is not None
    assert (event.kind, event.subject, event.reason, event.data) == (
        "model.updated",
        "acme/echo",
        "nights",
        chain,
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("fallbacks", ["acme/ech"], "There is no model 'acme/ech'. Did you mean acme/echo or"),
        ("fallbacks", ["acme/echo"], "cannot stand in for itself"),
        ("fallbacks", ["acme/echo@2"], "has no version or alias '2'"),
        ("fallbacks", ["acme/other@old"], "is archived"),
        ("fallbacks", ["acme/other", "acme/other"], "stands twice"),
        ("fallbacks", ["a b"], "a model's name, name@version or name@alias"),
        ("fallbacks", ["auto"], "a model's name, name@version or name@alias"),
        ("fallbacks", [f"m{number}" for number in range(8)], "no more than 7"),
        ("fallbacks", "acme/other", "list"),
        ("fallbacks", [None], "null"),
        ("first_token_ms", 0, "greater than or equal to 1"),
        ("first_token_ms", "1", "not a whole number"),
        ("no_fallback_on", ["boredom"], "boredom"),
        ("no_fallback_on", ["error", "error"], "distinct causes"),
        ("no_fallback_on", "error", "list"),
    ],
)
def test_a_wrong_chain_names_its_field(
    manager: APIClient, ready: ModelVersion, source: str, field: str, value: Any, said: str
) -> None:
    other = make_ready(actions.register_model("acme/other", actor="tests"), "old", source)
    actions.archive_version(other, actor="tests")

    status, param, message = error_of(
        manager.patch(f"/v1/registry/models/{ready.model_id}", {field: value}, format="json")
    )

    assert (status, str(param)[: len(field)]) == (400, field)
    assert said in message
    assert Model.objects.get(name="acme/echo").fallbacks == []


def test_what_is_wrong_with_a_new_models_chain_registers_nothing(manager: APIClient, db: None) -> None:
    body = {"name": "acme/new", "fallbacks": ["acme/gone"]}

    assert error_of(manager.post("/v1/registry/models", body, format="json"))[:2] == (400, "fallbacks")
    assert not Model.objects.exists()


@pytest.mark.parametrize("text", [r"ok\ud800", r"ok\u0000"])
def test_text_that_no_database_could_store_is_refused(manager: APIClient, text: str) -> None:
    body = f'{{"name": "ok", "description": "{text}"}}'

    response = manager.generic("POST", "/v1/registry/models", body, "application/json")

    assert error_of(response)[:2] == (400, "description")


def test_a_name_that_is_taken_is_409(manager: APIClient, ready: ModelVersion) -> None:
    status, _, message = error_of(manager.post("/v1/registry/models", {"name": "acme/echo"}, format="json"))

    assert (status, message) == (409, "There is a model 'acme/echo' already.")


def test_a_models_name_is_for_ever(manager: APIClient, ready: ModelVersion) -> None:
    response = manager.patch(f"/v1/registry/models/{ready.model_id}", {"name": "other"}, format="json")

    assert error_of(response)[:2] == (400, "name")


def test_a_version_is_registered_priced_archived_and_restored(
    manager: APIClient, ready: ModelVersion
) -> None:
    body = {"model": ready.model_id, "version": "2", "source_uri": ready.source_uri, "price_input": "0.15"}
    made = manager.post("/v1/registry/versions", body, format="json")
    assert (made.status_code, made.json()["served_id"]) == (201, "acme/echo@2")

    path = f"/v1/registry/versions/{ready.pk}"
    assert manager.patch(path, {"price_output": "0.6"}, format="json").json()["price_output"] == "0.600000"
    assert manager.post(f"{path}/archive").json()["state"] == "archived"
    assert manager.post(f"{path}/restore").json()["state"] == "ready"
    assert manager.get(path).json()["files"] == []


def test_the_import_of_a_version_is_202(
    manager: APIClient, ready: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = actions.register_version(ready.model, "2", ready.source_uri, actor="tests")

    response = manager.post(f"/v1/registry/versions/{version.pk}/import")

    assert (response.status_code, response.json()["state"]) == (202, "fetching")
    assert error_of(manager.post(f"/v1/registry/versions/{version.pk}/import"))[0] == 409


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source_uri", "ftp://x"),
        ("version", "a b"),
        ("price_input", "-1"),
        ("price_input", "NaN"),
        ("price_input", "1e400"),
        ("capabilities", ["fly"]),
        ("capabilities", "chat"),
        ("model", 10**12),
        ("state", "ready"),
        ("facts", {}),
    ],
)
def test_a_wrong_version_names_its_field(
    manager: APIClient, ready: ModelVersion, field: str, value: Any
) -> None:
    good = {"model": ready.model_id, "version": "2", "source_uri": ready.source_uri}

    response = manager.post("/v1/registry/versions", {**good, field: value}, format="json")

    assert error_of(response)[:2] == (400, field)


def test_what_was_published_cannot_be_patched(manager: APIClient, ready: ModelVersion) -> None:
    response = manager.patch(f"/v1/registry/versions/{ready.pk}", {"source_uri": "file:///x"}, format="json")

    assert error_of(response)[:2] == (400, "source_uri")


def test_promote_is_by_compare_and_set_and_rollback_undoes_it(
    manager: APIClient, ready: ModelVersion, source: str
) -> None:
    make_ready(ready.model, "2", source)
    path = f"/v1/registry/models/{ready.model_id}"

    first = manager.post(f"{path}/promote", {"version": "1"}, format="json").json()
    assert (first["name"], first["is_default"], first["revision"]) == ("production", True, 1)
    moved = manager.post(f"{path}/promote", {"version": "2", "expected_revision": 1}, format="json")
    assert moved.json()["revision"] == 2
    status, _, message = error_of(
        manager.post(f"{path}/promote", {"version": "1", "expected_revision": 1}, format="json")
    )
    assert status == 409
    assert "key:ops moved it" in message
    assert manager.post(f"{path}/rollback").json()["version"] == ready.pk
    status, param, _ = error_of(manager.post(f"{path}/promote", {"version": "9"}, format="json"))
    assert (status, param) == (404, "model")


def test_an_alias_becomes_the_default_and_goes(manager: APIClient, ready: ModelVersion) -> None:
    production = actions.promote(ready, actor="tests")
    beta = actions.promote(ready, actor="tests", alias="beta")

    assert manager.post(f"/v1/registry/aliases/{beta.pk}/default").json()["is_default"] is True
    assert manager.delete(f"/v1/registry/aliases/{production.pk}").status_code == 204
    assert list(Alias.objects.values_list("name", flat=True)) == ["beta"]


def test_lists_go_by_cursor_and_filter(manager: APIClient) -> None:
    for number in range(5):
        actions.register_model(f"m{number}", actor="tests")

    first = manager.get("/v1/registry/models?limit=2").json()
    second = manager.get(first["next"]).json()

    assert [row["name"] for row in first["results"] + second["results"]] == ["m4", "m3", "m2", "m1"]
    assert [row["name"] for row in manager.get("/v1/registry/models?name=m3").json()["results"]] == ["m3"]


@pytest.mark.parametrize("limit", ["0", "-1", "501", "abc", "", "9" * 5000, "١"])
def test_a_limit_that_cannot_be_is_refused(manager: APIClient, limit: str) -> None:
    assert error_of(manager.get("/v1/registry/models", {"limit": limit}))[:2] == (400, "limit")


@pytest.mark.parametrize(
    "query",
    [
        "cursor=nonsense",
        "cursor=cD0x%00",
        "limit=abc",
        "model=abc",
        "model=99999999999999999999",
        "state=fly",
    ],
)
def test_a_wrong_query_is_no_500(manager: APIClient, ready: ModelVersion, query: str) -> None:
    assert manager.get(f"/v1/registry/versions?{query}").status_code in (200, 400, 404)


def test_the_list_of_versions_costs_the_same_queries_however_many(
    manager: APIClient, ready: ModelVersion, source: str, django_assert_max_num_queries: Any
) -> None:
    for number in range(10):
        make_ready(ready.model, f"v{number}", source)

    # key, versions, files, revision
    with django_assert_max_num_queries(4):
        assert len(manager.get("/v1/registry/versions").json()["results"]) == 11


def test_events_are_read_only_and_filtered(manager: APIClient, ready: ModelVersion) -> None:
    found = manager.get("/v1/registry/events?subject=acme/echo&kind=model.registered").json()["results"]
    assert [row["actor"] for row in found] == ["tests"]
    assert manager.get("/v1/registry/events?since=2999-01-01T00:00:00Z").json()["results"] == []

    path = f"/v1/registry/events/{found[0]['id']}"
    assert manager.get(path).status_code == 200
    for method in ("post", "put", "patch", "delete"):
        assert error_of(getattr(manager, method)(path))[0] == 405


def test_a_key_is_shown_once_and_works_until_revoked(manager: APIClient) -> None:
    made = manager.post("/v1/registry/keys", {"name": "app", "requests_per_minute": 5}, format="json")
    assert made.status_code == 201
    raw = made.json()["key"]
    assert client_with(raw).get("/v1/models").status_code == 200

    path = f"/v1/registry/keys/{made.json()['id']}"
    shown = manager.get(path).json()
    assert "key" not in shown
    assert AccessKey.objects.get(name="app").digest not in manager.get("/v1/registry/keys").content.decode()

    assert manager.delete(path).status_code == 204
    assert client_with(raw).get("/v1/models").status_code == 401
    assert manager.get(path).json()["revoked_at"] is not None
    assert error_of(manager.delete(path))[0] == 409


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["root"]}, "scopes[0]"),
        ({"name": "a", "tokens_per_minute": 0}, "tokens_per_minute"),
        ({"name": "a", "expiry": "2020-01-01T00:00:00Z"}, "expiry"),
        ({"name": "a", "expiry": "tomorrow"}, "expiry"),
        ({"name": "a", "digest": "x"}, "digest"),
    ],
)
def test_a_wrong_key_names_its_field(manager: APIClient, body: dict[str, Any], param: str) -> None:
    status, found, _ = error_of(manager.post("/v1/registry/keys", body, format="json"))

    assert (status, found) == (400, param)
    assert Model.objects.count() == 0
