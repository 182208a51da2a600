"""`manage.py key_revoke KEY`"""

from __future__ import annotations

import uuid
from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import Conflict, NotFound
from mmserve.key_actions import revoke_key
from mmserve.models import AccessKey


class Command(DataCommand):
    help = (
        "Refuse an access key from now on. "
        "Exit codes: 0 done, 3 no such key, 4 revoked already, or several keys of that name."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key", help="its id, its first characters (15 of them) or its name")
        add_reason(parser)

    def run(self, *, key: str, reason: str, **_: Any) -> dict[str, Any]:
        row = revoke_key(_find(key), actor=actor(), reason=reason)
        return {"id": str(row.id), "name": row.name, "revoked_at": row.revoked_at}


def _find(given: str) -> AccessKey:
    rows = list(_matching(given))
    if not rows:
        raise NotFound(f"There is no access key {given!r}.")
    if len(rows) > 1:
        raise Conflict(
            f"{len(rows)} access keys are named {given!r}; use an id: {', '.join(str(r.id) for r in rows)}"
        )
    return rows[0]


def _matching(given: str) -> Any:
    try:
        return AccessKey.objects.filter(pk=uuid.UUID(given))
    except ValueError:
        found = AccessKey.objects.filter(token_key=given)
        return found if found.exists() else AccessKey.objects.filter(name=given)
