"""Access keys at the door: for DRF by a query, for the hot path by a cache that each revision refreshes."""

from __future__ import annotations

import asyncio
import hmac
import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from channels.db import database_sync_to_async
from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.utils import timezone
from knox.crypto import hash_token
from rest_framework import authentication, permissions
from rest_framework.request import Request

from inference.gateway.auth import MAX_KEY_CHARS, KeyGrant
from mmserve.errors import AuthenticationFailed, PermissionDenied, Unavailable
from mmserve.models import AccessKey
from registry import revision

if TYPE_CHECKING:  # DRF loads this module while it loads its views
    from rest_framework.views import APIView

UNKNOWN = "This is not an access key of this server, or it was revoked."
EXPIRED = "The access key has expired."


def usable_keys(digests: Iterable[str]) -> list[AccessKey]:
    """The keys with these digests, not revoked and of an active user; expiry is the caller's to check."""
    return list(
        AccessKey.objects.filter(
            digest__in=list(digests), revoked_at=None, user__is_active=True
        ).select_related("user", "team")
    )


def looks_like_a_key(raw_key: str) -> bool:
    """Worth a digest and a query: our prefix, printable ASCII, bounded."""
    return (
        len(raw_key) <= MAX_KEY_CHARS
        and raw_key.isascii()
        and raw_key.isprintable()
        and raw_key.startswith(str(settings.REST_KNOX["TOKEN_PREFIX"]))
    )


class KeyAuthentication(authentication.BaseAuthentication):
    """``Authorization: Bearer <key>`` for DRF; ``request.auth`` is the AccessKey."""

    def authenticate(self, request: Request) -> tuple[object, AccessKey] | None:
        header = request.headers.get("Authorization")
        if header is None:
            return None
        scheme, _, raw_key = header.partition(" ")
        raw_key = raw_key.strip()
        if scheme.lower() != "bearer" or not raw_key:
            raise AuthenticationFailed("The Authorization header must be: Bearer <key>.")
        if not looks_like_a_key(raw_key):
            raise AuthenticationFailed(UNKNOWN)
        digest = hash_token(raw_key)
        key = next(iter(usable_keys([digest])), None)
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise AuthenticationFailed(UNKNOWN)
        if key.expiry is not None and key.expiry <= timezone.now():
            raise AuthenticationFailed(EXPIRED)
        return key.user, key

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class HasManageScope(permissions.BasePermission):
    """The scope ``manage``, or a superuser's session; any key to read a view with ``infer_may_read``, or to do
    what its ``infer_may`` names.
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        if isinstance(request.auth, AccessKey):
            reads = request.method in permissions.SAFE_METHODS and getattr(view, "infer_may_read", False)
            if reads or request.method in getattr(view, "infer_may", ()) or "manage" in request.auth.scopes:
                return True
            raise PermissionDenied(f"The access key {request.auth.name!r} lacks the scope 'manage'.")
        return bool(request.user and request.user.is_active and request.user.is_superuser)


class CachedAuthenticator:
    """Grants by digest, remembered per process; authenticates one event loop's requests.

    A hit costs one SHA-512 and one dictionary look-up. Misses share one query a digest, and only
    ``max_pending`` may wait at once. On a new config revision :meth:`refresh` asks for all remembered keys in
    one query, so that a revoked key is gone at once; while the database is away, what is remembered goes on
    working and the refresh stays due.
    """

    def __init__(
        self,
        *,
        capacity: int = 10_000,
        unknown_capacity: int = 10_000,
        max_pending: int = 256,
        query_s: float = 5.0,
    ) -> None:
        self._grants: OrderedDict[str, KeyGrant] = OrderedDict()
        self._unknown: OrderedDict[str, None] = OrderedDict()
        self._pending: dict[str, asyncio.Task[KeyGrant | None]] = {}
        self._capacity = capacity
        self._unknown_capacity = unknown_capacity
        self._max_pending = max_pending
        self._query_s = query_s
        self._generation = 0
        self.revision = 0

    async def authenticate(self, raw_key: str) -> KeyGrant:
        """The grant of a key; AuthenticationFailed when it is unknown, expired or revoked."""
        if not looks_like_a_key(raw_key):
            raise AuthenticationFailed(UNKNOWN)
        digest = hash_token(raw_key)
        grant = self._grants.get(digest)
        if grant is not None:
            self._grants.move_to_end(digest)
        elif digest in self._unknown:
            self._unknown.move_to_end(digest)
        else:
            grant = await self._ask(digest)
        if grant is None:
            raise AuthenticationFailed(UNKNOWN)
        if grant.expires_at is not None and grant.expires_at <= timezone.now().timestamp():
            raise AuthenticationFailed(EXPIRED)
        return grant

    def remembered(self, raw_key: str) -> KeyGrant | None:
        """The grant of a key that is good right now, if it is remembered."""
        grant = self._grants.get(hash_token(raw_key)) if looks_like_a_key(raw_key) else None
        expired = grant is not None and (grant.expires_at or math.inf) <= timezone.now().timestamp()
        return None if expired else grant

    async def refresh(self, new_revision: int) -> None:
        """Forget unknown keys, ask for the known ones anew; DatabaseError leaves them for the next try."""
        self._unknown.clear()
        self._generation += 1
        generation, asked = self._generation, list(self._grants)
        found = await asyncio.wait_for(_grants_of(asked), self._query_s)
        if generation != self._generation:
            return
        for digest in asked:
            if digest in found:
                self._grants[digest] = found[digest]
            else:
                self._grants.pop(digest, None)
        self.revision = new_revision

    async def _ask(self, digest: str) -> KeyGrant | None:
        task = self._pending.get(digest)
        if task is None:
            if len(self._pending) >= self._max_pending:
                raise Unavailable("Too many unknown access keys are being looked up.", retry_after_s=1)
            task = asyncio.create_task(self._query(digest))
            self._pending[digest] = task
            task.add_done_callback(lambda _: self._pending.pop(digest, None))
        try:
            return await asyncio.shield(task)
        except (DatabaseError, InterfaceError, TimeoutError) as error:
            raise Unavailable(
                "The access key cannot be looked up: no answer from the database.", retry_after_s=1
            ) from error

    async def _query(self, digest: str) -> KeyGrant | None:
        generation = self._generation
        found = await asyncio.wait_for(_grants_of([digest]), self._query_s)
        grant = found.get(digest)
        if generation == self._generation:
            self._remember(digest, grant)
        return grant

    def _remember(self, digest: str, grant: KeyGrant | None) -> None:
        if grant is None:
            self._unknown[digest] = None
            if len(self._unknown) > self._unknown_capacity:
                self._unknown.popitem(last=False)
            return
        self._grants[digest] = grant
        if len(self._grants) > self._capacity:
            self._grants.popitem(last=False)


@database_sync_to_async
def _grants_of(digests: list[str]) -> dict[str, KeyGrant]:
    number = revision.current()
    return {key.digest: grant_of(key, number) for key in usable_keys(digests)}


def grant_of(key: AccessKey, number: int) -> KeyGrant:
    """The row as the value that the gateway carries."""
    return KeyGrant(
        id=str(key.id),
        name=key.name,
        team=key.team.name if key.team else "",
        scopes=frozenset(key.scopes),
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        max_concurrency=key.max_concurrency,
        allowed_models=tuple(key.allowed_models),
        priority=key.priority,
        expires_at=key.expiry.timestamp() if key.expiry else None,
        revision=number,
    )
