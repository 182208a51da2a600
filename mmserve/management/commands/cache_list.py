"""`manage.py cache_list`"""

from __future__ import annotations

import datetime
from typing import Any

from mmserve.command import DataCommand
from registry import cache
from registry.models import ModelVersion


class Command(DataCommand):
    help = (
        "List the versions whose files this machine keeps, the least recently used first. Exit codes: 0 done."
    )
    columns = ("id", "size_bytes", "used_at", "pinned", "in_use", "entry")

    def run(self, **_: Any) -> list[dict[str, Any]]:
        names = {
            cache.entry_name(version): version.served_id
            for version in ModelVersion.objects.select_related("model").exclude(path="")
        }
        return [
            {
                "id": names.get(entry.name),
                "entry": entry.name,
                "size_bytes": entry.size_bytes,
                "used_at": datetime.datetime.fromtimestamp(entry.used_at, datetime.UTC).isoformat(
                    "T", "seconds"
                ),
                "pinned": entry.pinned,
                "in_use": entry.in_use,
            }
            for entry in cache.entries()
        ]
