"""`manage.py cache_pin ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand
from registry import cache
from registry.lookup import find_version


class Command(DataCommand):
    help = "Keep a version's files in this machine's cache. Exit codes: 0 done, 3 no such model."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name@version")
        parser.add_argument("--off", action="store_true", help="let them go again when others need the room")
        parser.add_argument("--fetch", action="store_true", help="bring them now")

    def run(self, *, id: str, off: bool, fetch: bool, **_: Any) -> dict[str, Any]:
        version = find_version(id)
        cache.pin(version, on=not off)
        if fetch and not off:
            cache.hold(version).release()
        return {"id": version.served_id, "pinned": not off, "here": cache.is_here(version)}
