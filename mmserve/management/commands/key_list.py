"""`manage.py key_list`"""

from __future__ import annotations

from typing import Any

from mmserve.command import DataCommand
from mmserve.models import AccessKey


class Command(DataCommand):
    help = "List access keys, without the keys. Exit codes: 0 done."
    columns = ("id", "name", "token_key", "scopes", "expiry", "revoked_at")

    def run(self, **_: Any) -> list[dict[str, Any]]:
        return list(AccessKey.objects.values(*self.columns))
