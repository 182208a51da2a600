"""`manage.py cache_prune`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand
from mmserve.errors import InvalidRequest
from registry import cache


class Command(DataCommand):
    help = (
        "Evict the least recently used files from this machine's cache, and what crashes left. "
        "What is loaded, loading or pinned stays. Exit codes: 0 done, 5 a wrong value."
    )
    columns = ("entry", "size_bytes")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--keep-bytes", type=int, default=0, help="leave that much (default: nothing)")

    def run(self, *, keep_bytes: int, **_: Any) -> list[dict[str, Any]]:
        if keep_bytes < 0:
            raise InvalidRequest(f"--keep-bytes is {keep_bytes}, less than 0", param="keep_bytes")
        return [{"entry": gone.name, "size_bytes": gone.size_bytes} for gone in cache.prune(keep_bytes)]
