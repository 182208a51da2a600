"""`manage.py key_revoke KEY`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.key_actions import find_key, revoke_key


class Command(DataCommand):
    help = (
        "Refuse an access key from now on. "
        "Exit codes: 0 done, 3 no such key, 4 revoked already, or several keys of that name."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key", help="its id, its first characters (15 of them) or its name")
        add_reason(parser)

    def run(self, *, key: str, reason: str, **_: Any) -> dict[str, Any]:
        row = revoke_key(find_key(key), actor=actor(), reason=reason)
        return {"id": str(row.id), "name": row.name, "revoked_at": row.revoked_at}
