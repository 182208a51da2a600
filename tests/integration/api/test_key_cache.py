"""The cache of access keys on the hot path: one query a key, bounded, refreshed by each revision."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import OperationalError, connections
from django.utils import timezone
from knox.crypto import hash_token

from mmserve import keys
from mmserve.errors import AuthenticationFailed, Unavailable
from mmserve.key_actions import create_key, revoke_key
from mmserve.keys import CachedAuthenticator
from mmserve.models import AccessKey


@pytest.fixture(autouse=True)
async def _no_connection_is_left() -> AsyncIterator[None]:
    """The look-ups run in a thread of their own, whose connection would keep the test database in use."""
    yield
    await sync_to_async(connections.close_all)()


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
