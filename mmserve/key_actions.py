"""What may be done to access keys: create and revoke."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from knox.models import get_digest_token
from knox.settings import CONSTANTS

from mmserve.errors import Conflict, InvalidRequest
from mmserve.models import AccessKey, default_scopes
from registry.revision import bump


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
    try:
        key.full_clean()
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        raise InvalidRequest(f"{field}: {messages[0]}", param=field) from error
    key.save(force_insert=True)
    bump("key.created", str(key), actor, reason, {"id": str(key.id), "scopes": key.scopes})
    return key, raw


@transaction.atomic
def revoke_key(key: AccessKey, *, actor: str, reason: str = "") -> AccessKey:
    """Refuse the key from now on; the row stays for the record."""
    now = timezone.now()
    if not AccessKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=now):
        raise Conflict(f"{key} is revoked already")
    key.revoked_at = now
    bump("key.revoked", str(key), actor, reason, {"id": str(key.id)})
    return key
