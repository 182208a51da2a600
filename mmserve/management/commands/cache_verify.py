"""`manage.py cache_verify`"""

from __future__ import annotations

import sys
from typing import Any

from mmserve.command import DataCommand
from registry import cache
from registry.stamp import damage


class Command(DataCommand):
    help = (
        "Hash every file in this machine's cache. Exit codes: 0 all whole, 4 some damaged "
        "(the next load fetches those again)."
    )
    columns = ("entry", "id", "damage")

    def run(self, **_: Any) -> list[dict[str, Any]]:
        versions = cache.versions_by_entry()
        rows = []
        for entry in cache.entries():
            version = versions.get(entry.name)
            found = damage(entry.folder, cache.manifest_of(version), full=True) if version else []
            rows.append(
                {
                    "entry": entry.name,
                    "id": version.served_id if version else None,
                    "damage": [f"{one.path} {one.words}" for one in found],
                }
            )
        return rows

    def handle(self, *args: Any, **options: Any) -> None:
        rows = self.run(**options)
        self.render(rows, as_json=options["json"])
        if any(row["damage"] for row in rows):
            sys.exit(4)
