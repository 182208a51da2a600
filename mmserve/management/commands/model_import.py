"""`manage.py model_import ID`"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic, sleep
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import Sum
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, Task, TaskID, TextColumn
from rich.text import Text

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import Conflict, Unavailable
from mmserve.presentation import version_fields
from registry.actions import import_version
from registry.admin_parts import in_bytes
from registry.lookup import find_version
from registry.models import ModelVersion, VersionState

POLL_S = 0.5


class Moved(DownloadColumn):
    """Nothing while it is not known of how much."""

    def render(self, task: Task) -> Text:
        """Like ``12.0/256.6 MiB``."""
        return Text() if task.total is None else super().render(task)


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
        until = monotonic() + timeout_s
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            Moved(binary_units=True),
            TextColumn("{task.fields[speed]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("queued", total=None, speed="")
            files: dict[str, TaskID] = {}
            while version.state == VersionState.FETCHING:
                if monotonic() > until:
                    raise Unavailable(
                        f"{version.served_id} is not ready after {timeout_s:g} s; the job goes on."
                    )
                progress = version.progress
                bar.update(
                    task,
                    description=progress.get("stage", "fetching"),
                    completed=progress.get("done_bytes", 0),
                    total=progress.get("total_bytes"),
                    speed=_speed(progress),
                )
                _show_files(bar, files, progress.get("files", ()))
                sleep(POLL_S)
                version.refresh_from_db()
            whole = version.files.aggregate(whole=Sum("size_bytes"))["whole"]
            bar.update(task, description=version.state, completed=whole or 0, total=whole, speed="")
            _show_files(bar, files, ())
        if version.state == VersionState.FAILED:
            raise Conflict(f"{version.served_id} failed: {version.state_reason}")


def _speed(progress: dict[str, Any]) -> str:
    """As the job measured it: this command sees no bytes itself."""
    words = []
    if progress.get("bytes_per_s"):
        words.append(f"{in_bytes(progress['bytes_per_s'])}/s")
    if progress.get("eta_s") is not None:
        words.append(f"{progress['eta_s']:.0f} s left")
    return ", ".join(words)


def _show_files(bar: Progress, shown: dict[str, TaskID], files: Sequence[dict[str, Any]]) -> None:
    """A bar for each file that is under way; gone when it is whole."""
    paths = {file["path"] for file in files}
    for path in set(shown) - paths:
        bar.remove_task(shown.pop(path))
    for file in files:
        if file["path"] not in shown:
            shown[file["path"]] = bar.add_task(f"  {file['path']}", total=file["total_bytes"], speed="")
        bar.update(shown[file["path"]], completed=file["done_bytes"])
