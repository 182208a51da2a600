"""Access keys: made, revoked, and asked for at DRF's door."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from knox.crypto import hash_token
from rest_framework.test import APIClient

from mmserve.errors import Conflict, InvalidRequest
from mmserve.key_actions import create_key, revoke_key
from mmserve.models import AccessKey
from registry.models import Event, IdempotentRequest
from tests.integration.api.conftest import client_with


def test_only_the_digest_is_stored(ada: User) -> None:
    key, raw = create_key(name="app", user=ada, actor="tests", reason="for the app")

    stored = AccessKey.objects.values().get()
    assert stored["digest"] == hash_token(raw)
    assert raw not in map(str, stored.values())
    event = Event.objects.first()
    assert event is not None
    assert (event.kind, event.reason) == ("key.created", "for the app")
    assert raw not in str(event.data) + event.subject
    assert key.digest not in str(event.data) + event.subject


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"name": ""}, "name"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"expiry": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)}, "expiry"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(ada: User, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        create_key(**{"name": "app", "user": ada, "actor": "tests", **fields})

    assert refused.value.param == param
    assert not AccessKey.objects.exists()


def test_a_key_is_revoked_once(infer_key: tuple[AccessKey, str]) -> None:
    key, raw = infer_key
    assert client_with(raw).get("/v1/models").status_code == 200

    revoke_key(key, actor="tests")

    assert client_with(raw).get("/v1/models").status_code == 401
    with pytest.raises(Conflict, match="revoked already"):
        revoke_key(key, actor="tests")


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer mms-" + "0" * 64,
        "Bearer nonsense",
        "Bearer " + "x" * 5000,
        "Bearer mms-\x00",
        "bearer a b c",
    ],
)
def test_a_header_that_is_no_key_is_401(db: None, header: str) -> None:
    client = APIClient(raise_request_exception=False)
    response = client.get("/v1/models", headers={"Authorization": header})

    assert response.status_code == 401
    assert response["WWW-Authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_no_header_is_401(db: None) -> None:
    assert APIClient().get("/v1/models").status_code == 401


def test_an_expired_key_and_the_key_of_a_disabled_user_are_401(
    infer_key: tuple[AccessKey, str], ada: User
) -> None:
    _, raw = infer_key
    AccessKey.objects.update(expiry=timezone.now() - datetime.timedelta(seconds=1))
    response = client_with(raw).get("/v1/models")
    assert response.status_code == 401
    assert "expired" in response.json()["error"]["message"]

    AccessKey.objects.update(expiry=None)
    User.objects.update(is_active=False)
    assert client_with(raw).get("/v1/models").status_code == 401


def test_an_infer_key_reads_models_and_nothing_else(reader: APIClient) -> None:
    assert reader.get("/v1/models").status_code == 200
    for method, path in (
        ("get", "/v1/registry/models"),
        ("get", "/v1/registry/keys"),
        ("post", "/v1/models/x/load"),
        ("delete", "/v1/models/x"),
    ):
        response = getattr(reader, method)(path)
        assert response.status_code == 403, path
        error = response.json()["error"]
        assert (error["code"], error["type"]) == ("insufficient_scope", "permission_error")


def test_a_superusers_session_manages_and_a_plain_users_does_not(ada: User) -> None:
    client = APIClient()
    client.force_login(ada)
    assert client.get("/v1/registry/models").status_code == 200

    plain = User.objects.create_user("bob", password="correct horse", is_staff=True)
    client.force_login(plain)
    assert client.get("/v1/registry/models").status_code == 403


def test_a_session_writes_only_with_its_csrf_token(ada: User) -> None:
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(ada)

    assert client.post("/v1/registry/models", {"name": "x"}, format="json").status_code == 403


def test_a_keys_limits_are_changed_over_rest_with_an_event(
    manager: APIClient, infer_key: tuple[AccessKey, str]
) -> None:
    key, _ = infer_key
    assert key.priority == "normal"
    changes = {"requests_per_minute": 7, "priority": "high"}
    answer = manager.patch(
        f"/v1/registry/keys/{key.pk}", {**changes, "reason": "a bigger customer"}, format="json"
    )

    assert answer.status_code == 200
    assert {name: answer.json()[name] for name in changes} == changes
    event = Event.objects.first()
    assert event is not None
    assert (event.kind, event.actor, event.reason) == ("key.changed", "key:ops", "a bigger customer")
    assert event.data["from"] == {"requests_per_minute": None, "priority": "normal"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"priority": "urgent"}, "priority"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": None}, "max_concurrency"),
        ({"scopes": ["manage"]}, "scopes"),
        ({"requests_per_minute": "7"}, "requests_per_minute"),
        ({"tokens_per_minute": 2**70}, "tokens_per_minute"),
    ],
)
def test_a_wrong_limit_is_refused_by_name(
    manager: APIClient, infer_key: tuple[AccessKey, str], body: dict[str, Any], param: str
) -> None:
    answer = manager.patch(f"/v1/registry/keys/{infer_key[0].pk}", body, format="json")

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_revoked_key_is_not_changed(manager: APIClient, infer_key: tuple[AccessKey, str]) -> None:
    key, _ = infer_key
    revoke_key(key, actor="tests")

    assert manager.patch(f"/v1/registry/keys/{key.pk}", {"priority": "low"}, format="json").status_code == 409


def test_a_repeated_idempotency_key_makes_no_second_key_and_does_not_give_the_first_one_away(
    manager: APIClient,
) -> None:
    def ask(**body: Any) -> Any:
        return manager.post("/v1/registry/keys", body, format="json", HTTP_IDEMPOTENCY_KEY="once-1")

    first = ask(name="app")
    again = ask(name="app")

    assert (first.status_code, again.status_code) == (201, 201)
    assert again["Idempotency-Replayed"] == "true"
    assert "key" not in again.json()
    raw = first.json()["key"]
    assert {**again.json(), "key": raw} == first.json()
    assert AccessKey.objects.filter(name="app").count() == 1
    kept = IdempotentRequest.objects.get(key="once-1")
    assert raw not in json.dumps(kept.body), "the text of a key is stored nowhere"
    assert ask(name="other").status_code == 422
    assert client_with(raw).get("/v1/models").status_code == 200


def test_a_key_that_somebody_changed_meanwhile_is_not_overwritten(
    manager: APIClient, infer_key: tuple[AccessKey, str]
) -> None:
    path = f"/v1/registry/keys/{infer_key[0].pk}"
    seen = manager.get(path)["ETag"]
    assert manager.patch(path, {"max_concurrency": 3}, format="json", HTTP_IF_MATCH=seen).status_code == 200
    lost = manager.patch(path, {"max_concurrency": 4}, format="json", HTTP_IF_MATCH=seen)
    assert (lost.status_code, lost.json()["error"]["code"]) == (412, "precondition_failed")
    assert manager.get(path).json()["max_concurrency"] == 3
