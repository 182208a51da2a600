"""`manage.py cache_list`"""

from __future__ import annotations

import datetime
from typing import Any

from mmserve.command import DataCommand
from registry import cache


class Command(DataCommand):
    help = (
        "List the versions whose files this machine keeps, the least recently used first. Exit codes: 0 done."
    )
    columns = ("id", "size_bytes", "used_at", "pinned", "in_use", "entry")

    def run(self, **_: Any) -> list[dict[str, Any]]:
        versions = cache.versions_by_entry()
        return [
            {
                "id": versions[entry.name].served_id if entry.name in versions else None,
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
