"""`manage.py model_load ID`"""

from __future__ import annotations

from time import monotonic, sleep
from typing import Any

from django.core.management.base import CommandParser

from inference.actions import load
from inference.status import FAILED, READY, UNLOADED
from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import Conflict, Unavailable
from mmserve.presentation import current_statuses, version_fields
from registry.lookup import find_version
from registry.models import ModelVersion

POLL_S = 0.5


class Command(DataCommand):
    help = (
        "Have a model served. "
        "Exit codes: 0 asked for (--wait: it serves), 1 out of time, 3 no such model, "
        "4 refused: not ready, or it would not fit (--wait: the load failed)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name, name@version or name@alias")
        parser.add_argument("--replicas", type=int, default=1)
        parser.add_argument("--wait", action="store_true", help="until it serves or its load has failed")
        parser.add_argument("--timeout", type=float, default=1800.0, help="seconds to wait at most")
        add_reason(parser)

    def run(
        self, *, id: str, replicas: int, reason: str, wait: bool, timeout: float, **_: Any
    ) -> dict[str, Any]:
        version = find_version(id)
        load(version, actor=actor(), reason=reason, replicas=replicas)
        if wait:
            self._follow(version, timeout)
        return version_fields(version)

    def _follow(self, version: ModelVersion, timeout_s: float) -> None:
        """Each stage is told once, on stderr."""
        until, told = monotonic() + timeout_s, None
        while (found := current_statuses([version])[version.pk]).status != READY:
            if found.status in (FAILED, UNLOADED):
                why = found.reason or "somebody had it unloaded."
                raise Conflict(f"{version.served_id} does not serve: {why}")
            if monotonic() > until:
                raise Unavailable(
                    f"{version.served_id} does not serve after {timeout_s:g} s; the load goes on."
                )
            if told != (told := found.stage or found.status):
                left = "" if found.eta_s is None else f", about {found.eta_s:.0f} s left"
                self.stderr.write(f"{version.served_id}: {told}{left}")
            sleep(POLL_S)
