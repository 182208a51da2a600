"""Who is asking: the bearer key of a request, and what it may do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from mmserve.errors import AuthenticationFailed, PermissionDenied

INFER = "infer"
MAX_KEY_CHARS = 512


class KeyGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What one access key may do; None is without a limit."""

    id: str
    name: str
    scopes: frozenset[str]
    team: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    priority: str = "high"  # the highest class that its requests may ask for
    allowed_models: tuple[str, ...] = ()  # patterns of what it may use; none: all
    expires_at: float | None = None  # unix time
    revision: int = 0


class Authenticator(Protocol):
    """Turns a raw key into its grant; AuthenticationFailed when it is unknown, expired or revoked."""

    async def authenticate(self, raw_key: str) -> KeyGrant: ...

    def remembered(self, raw_key: str) -> KeyGrant | None:
        """The grant of a key that is good right now, if that is known without asking."""
        ...

    async def refresh(self, new_revision: int) -> None:
        """The configuration changed: what is remembered of keys may be wrong now."""
        ...


def bearer_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key of ``Authorization: Bearer <key>``, or None when there is no such header."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise AuthenticationFailed("The Authorization header must be: Bearer <key>.")
            return key.strip().decode("latin-1")
    return None


async def authorize(authenticator: Authenticator, raw_key: str | None, *, now: float) -> KeyGrant:
    """The grant of a key that is good for inference right now; 401 or 403 otherwise."""
    if not raw_key:
        raise AuthenticationFailed("No access key. Send it as: Authorization: Bearer <key>.")
    if len(raw_key) > MAX_KEY_CHARS or not raw_key.isascii() or not raw_key.isprintable():
        raise AuthenticationFailed("This is not an access key of this server.")
    grant = await authenticator.authenticate(raw_key)
    if grant.expires_at is not None and grant.expires_at <= now:
        raise AuthenticationFailed("The access key has expired.")
    if INFER not in grant.scopes:
        raise PermissionDenied(f"The access key {grant.name!r} lacks the scope {INFER!r}.")
    return grant
