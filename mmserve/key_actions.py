"""What may be done to access keys: create, find, change their limits or team, revoke."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone
from knox.models import get_digest_token
from knox.settings import CONSTANTS

from mmserve.errors import Conflict, InvalidRequest, NotFound
from mmserve.models import AccessKey, default_scopes
from registry.revision import bump
from routing.models import Team

EDITABLE = (
    "team",
    "requests_per_minute",
    "tokens_per_minute",
    "max_concurrency",
    "priority",
    "allowed_models",
)


@transaction.atomic
def create_key(
    *,
    name: str,
    user: AbstractBaseUser,
    actor: str,
    reason: str = "",
    scopes: Sequence[str] | None = None,
    expiry: datetime.datetime | None = None,
    **limits: Any,
) -> tuple[AccessKey, str]:
    """A new key and its raw text, which is stored nowhere: whoever asked must keep it."""
    if expiry is not None and expiry <= timezone.now():
        raise InvalidRequest("expiry lies in the past", param="expiry")
    digest, raw = get_digest_token()
    key = AccessKey(
        name=name,
        user=user,
        scopes=default_scopes() if scopes is None else list(scopes),
        expiry=expiry,
        digest=digest,
        token_key=raw[: CONSTANTS.TOKEN_KEY_LENGTH],
        **limits,
    )
    _check(key)
    key.save(force_insert=True)
    bump("key.created", str(key), actor, reason, {"id": str(key.id), "scopes": key.scopes})
    return key, raw


@transaction.atomic
def change_key(key: AccessKey, changes: dict[str, Any], *, actor: str, reason: str = "") -> AccessKey:
    """Other limits, another class or team for a key; every gateway goes by them within a second."""
    for field in changes:
        if field not in EDITABLE:
            raise InvalidRequest(
                f"'{field}' of a key cannot be changed; what can: {', '.join(EDITABLE)}", param=field
            )
    row = AccessKey.objects.select_for_update().get(pk=key.pk)
    if row.revoked_at is not None:
        raise Conflict(f"{row} is revoked")
    before = {field: getattr(row, field) for field in changes}
    for field, value in changes.items():
        setattr(row, field, value)
    _check(row)
    if changes:
        row.save(update_fields=list(changes))
        data = {"id": str(row.id), "from": _words(before), "to": _words(changes)}
        bump("key.changed", str(row), actor, reason, data)
    return row


def _words(values: dict[str, Any]) -> dict[str, Any]:
    return {field: str(value) if isinstance(value, Team) else value for field, value in values.items()}


def _check(key: AccessKey) -> None:
    """Refuse what makes no sense; names the field."""
    try:
        key.full_clean()
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        raise InvalidRequest(f"{field}: {messages[0]}", param=field) from error


@transaction.atomic
def revoke_key(key: AccessKey, *, actor: str, reason: str = "") -> AccessKey:
    """Refuse the key from now on; the row stays for the record."""
    now = timezone.now()
    if not AccessKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=now):
        raise Conflict(f"{key} is revoked already")
    key.revoked_at = now
    bump("key.revoked", str(key), actor, reason, {"id": str(key.id)})
    return key


def find_key(given: str) -> AccessKey:
    """The key of an id, of its first characters, or of a name that it alone has; NotFound, Conflict."""
    rows = list(_matching(given))
    if not rows:
        raise NotFound(f"There is no access key {given!r}.")
    if len(rows) > 1:
        raise Conflict(
            f"{len(rows)} access keys are named {given!r}; use an id: {', '.join(str(r.id) for r in rows)}"
        )
    return rows[0]


def _matching(given: str) -> QuerySet[AccessKey]:
    try:
        return AccessKey.objects.filter(pk=uuid.UUID(given))
    except ValueError:
        found = AccessKey.objects.filter(token_key=given)
        return found if found.exists() else AccessKey.objects.filter(name=given)
