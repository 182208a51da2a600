"""Access keys: at DRF's door, and in the cache of the hot path."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import OperationalError
from django.utils import timezone
from knox.crypto import hash_token
from rest_framework.test import APIClient

from mmserve import keys
from mmserve.errors import AuthenticationFailed, Conflict, InvalidRequest, Unavailable
from mmserve.key_actions import create_key, revoke_key
from mmserve.keys import CachedAuthenticator
from mmserve.models import AccessKey
from registry.models import Event
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


# The cache of the hot path


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The digests of each query that the cache makes; ``usable_keys`` still answers."""
    asked: list[list[str]] = []
    ask = keys.usable_keys

    def count(digests: Any) -> list[AccessKey]:
        asked.append(list(digests))
        return ask(asked[-1])

    monkeypatch.setattr(keys, "usable_keys", count)
    return asked


@pytest.fixture
async def app_key(transactional_db: None) -> tuple[AccessKey, str]:
    def make() -> tuple[AccessKey, str]:
        ada = User.objects.create_superuser("ada", password="correct horse")
        return create_key(name="app", user=ada, actor="tests", requests_per_minute=7, max_concurrency=3)

    return await sync_to_async(make)()


async def test_a_key_is_asked_for_once_and_hashed_once_a_request(
    app_key: tuple[AccessKey, str], queries: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, raw = app_key
    cache = CachedAuthenticator()
    grant = await cache.authenticate(raw)
    assert (grant.id, grant.name, grant.requests_per_minute, grant.max_concurrency) == (
        str(key.id),
        "app",
        7,
        3,
    )
    assert grant.scopes == frozenset({"infer"})
    hashed: list[str] = []
    monkeypatch.setattr(keys, "hash_token", lambda text: hashed.append(text) or hash_token(text))

    for _ in range(5):
        assert await cache.authenticate(raw) is grant

    assert len(queries) == 1
    assert len(hashed) == 5


async def test_an_unknown_key_is_asked_for_once_too(transactional_db: None, queries: list[Any]) -> None:
    cache = CachedAuthenticator()

    for _ in range(3):
        with pytest.raises(AuthenticationFailed):
            await cache.authenticate("mms-" + "0" * 64)

    assert len(queries) == 1


async def test_many_at_once_share_one_query(app_key: tuple[AccessKey, str], queries: list[Any]) -> None:
    cache = CachedAuthenticator()

    grants = await asyncio.gather(*(cache.authenticate(app_key[1]) for _ in range(50)))

    assert len(set(map(id, grants))) == 1
    assert len(queries) == 1


async def test_both_memories_are_bounded(transactional_db: None) -> None:
    def make() -> list[str]:
        ada = User.objects.create_superuser("ada", password="correct horse")
        return [create_key(name=str(number), user=ada, actor="tests")[1] for number in range(4)]

    cache = CachedAuthenticator(capacity=3, unknown_capacity=2)
    for raw in await sync_to_async(make)():
        await cache.authenticate(raw)
    for number in range(5):
        with pytest.raises(AuthenticationFailed):
            await cache.authenticate(f"mms-{number:064}")

    assert len(cache._grants) == 3
    assert len(cache._unknown) == 2


async def test_look_ups_that_wait_are_bounded(transactional_db: None) -> None:
    cache = CachedAuthenticator(max_pending=2)

    answers = await asyncio.gather(
        *(cache.authenticate(f"mms-{number:064}") for number in range(4)), return_exceptions=True
    )

    assert [type(answer) for answer in answers].count(Unavailable) == 2
    assert [type(answer) for answer in answers].count(AuthenticationFailed) == 2


async def test_a_refresh_forgets_a_revoked_key_and_learns_a_new_one(app_key: tuple[AccessKey, str]) -> None:
    key, raw = app_key
    cache = CachedAuthenticator()
    await cache.authenticate(raw)
    later = "mms-" + "0" * 64
    with pytest.raises(AuthenticationFailed):
        await cache.authenticate(later)

    await sync_to_async(revoke_key)(key, actor="tests")
    await sync_to_async(_store)(later)
    await cache.refresh(5)

    with pytest.raises(AuthenticationFailed, match="revoked"):
        await cache.authenticate(raw)
    assert (await cache.authenticate(later)).name == "later"
    assert cache.revision == 5


async def test_a_refresh_asks_for_all_keys_in_one_query(
    app_key: tuple[AccessKey, str], queries: list[Any]
) -> None:
    cache = CachedAuthenticator()
    await cache.authenticate(app_key[1])

    await cache.refresh(2)
    await cache.authenticate(app_key[1])

    assert len(queries) == 2


async def test_expiry_is_looked_at_on_every_use(app_key: tuple[AccessKey, str]) -> None:
    _, raw = app_key
    await AccessKey.objects.aupdate(expiry=timezone.now() + datetime.timedelta(hours=1))
    cache = CachedAuthenticator()
    grant = await cache.authenticate(raw)
    assert grant.expires_at is not None

    await AccessKey.objects.aupdate(expiry=timezone.now() - datetime.timedelta(seconds=1))
    await cache.refresh(2)

    with pytest.raises(AuthenticationFailed, match="expired"):
        await cache.authenticate(raw)


async def test_remembered_keys_go_on_while_the_database_is_away(
    app_key: tuple[AccessKey, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CachedAuthenticator()
    await cache.authenticate(app_key[1])

    def away(digests: Any) -> list[AccessKey]:
        raise OperationalError("gone")

    monkeypatch.setattr(keys, "usable_keys", away)

    with pytest.raises(OperationalError):
        await cache.refresh(9)
    assert (await cache.authenticate(app_key[1])).name == "app"
    assert cache.revision == 0
    with pytest.raises(Unavailable, match="no answer from the database"):
        await cache.authenticate("mms-" + "1" * 64)


async def test_an_answer_from_before_a_refresh_is_not_remembered(
    app_key: tuple[AccessKey, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, raw = app_key
    cache = CachedAuthenticator()
    asked, may_answer = asyncio.Event(), asyncio.Event()
    ask = keys._grants_of

    async def slow(digests: list[str]) -> Any:
        found = await ask(digests)
        asked.set()
        await may_answer.wait()
        return found

    monkeypatch.setattr(keys, "_grants_of", slow)
    first = asyncio.create_task(cache.authenticate(raw))
    await asked.wait()
    monkeypatch.setattr(keys, "_grants_of", ask)
    await sync_to_async(revoke_key)(key, actor="tests")
    await cache.refresh(2)
    may_answer.set()
    await first

    with pytest.raises(AuthenticationFailed):
        await cache.authenticate(raw)


def _store(raw: str) -> None:
    ada = User.objects.get(username="ada")
    key, _ = create_key(name="later", user=ada, actor="tests")
    AccessKey.objects.filter(pk=key.pk).update(digest=hash_token(raw))
