"""`manage.py model_verify ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from rich.console import Console
from rich.progress import Progress

from mmserve.command import DataCommand
from mmserve.errors import Conflict, InvalidRequest
from registry import cache, jobs, store
from registry.lookup import find_version
from registry.models import PUBLISHED
from registry.stamp import damage


class Command(DataCommand):
    help = (
        "Hash a version's files here and compare them with its manifest. "
        "Exit codes: 0 whole (--repair: or repaired), 3 no such model, 4 damaged."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name@version")
        parser.add_argument(
            "--quick", action="store_true", help="trust files whose size and time are as noted"
        )
        parser.add_argument(
            "--repair",
            action="store_true",
            help="fetch damaged files again: from the source, or into a cache from the store",
        )

    def run(self, *, id: str, quick: bool, repair: bool, **_: Any) -> dict[str, Any]:
        version = find_version(id)
        if version.state not in PUBLISHED:
            raise Conflict(f"{version.served_id} is {version.state}: it has no files yet.")
        manifest = cache.manifest_of(version)
        if store.is_local():
            folder = store.location(version.path)
        elif cache.is_here(version):
            folder = cache.root() / cache.entry_name(version)
        else:
            raise InvalidRequest(
                f"{version.served_id} is not in this machine's cache: nothing to verify here."
            )
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("verify", total=None)
            found = damage(
                folder,
                manifest,
                full=not quick,
                report=lambda done, total: bar.update(task, completed=done, total=total),
            )
        words = [f"{one.path} {one.words}" for one in found]
        if repair:
            if found and not store.is_local():
                cache.renew(version)
            elif found:
                jobs.repair_version(version.pk, found)
        elif found:
            raise Conflict(f"{version.served_id} is damaged: {'; '.join(words)}")
        return {
            "id": version.served_id,
            "files": len(manifest),
            "bytes": sum(entry.size_bytes for entry in manifest),
            "damage": words,
            "repaired": bool(found and repair),
        }
