"""`manage.py model_import ID`"""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import CommandParser
from rich.console import Console
from rich.progress import Progress

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import Conflict, Unavailable
from mmserve.presentation import version_fields
from registry.actions import import_version
from registry.lookup import find_version
from registry.models import ModelVersion, VersionState

POLL_S = 0.5


class Command(DataCommand):
    help = (
        "Have the ops worker bring a version's files; also retries after a failure. "
        "Exit codes: 0 queued (--wait: ready), 1 out of time, 3 no such model, 4 refused or failed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name@version")
        parser.add_argument("--wait", action="store_true", help="until it is ready or failed")
        parser.add_argument("--timeout", type=float, default=3600.0, help="seconds to wait at most")
        add_reason(parser)

    def run(self, *, id: str, reason: str, wait: bool, timeout: float, **_: Any) -> dict[str, Any]:
        version = find_version(id)
        import_version(version, actor=actor(), reason=reason)
        if wait:
            self._follow(version, timeout)
        return version_fields(version)

    def _follow(self, version: ModelVersion, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("queued", total=None)
            while version.state == VersionState.FETCHING:
                if time.monotonic() > until:
                    raise Unavailable(
                        f"{version.served_id} is not ready after {timeout_s:g} s; the job goes on."
                    )
                progress = version.progress
                bar.update(
                    task,
                    description=progress.get("stage", "fetching"),
                    completed=progress.get("done_bytes", 0),
                    total=progress.get("total_bytes"),
                )
                time.sleep(POLL_S)
                version.refresh_from_db()
        if version.state == VersionState.FAILED:
            raise Conflict(f"{version.served_id} failed: {version.state_reason}")
