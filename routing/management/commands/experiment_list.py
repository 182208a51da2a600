"""`manage.py experiment_list`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand
from routing.models.experiments import Experiment, State


class Command(DataCommand):
    help = "List experiments, the newest first. Exit codes: 0 done."
    columns = ("name", "state", "target", "exposure", "phase", "started_at", "state_reason")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--state", choices=State.values)

    def run(self, *, state: str | None, **_: Any) -> list[dict[str, Any]]:
        rows = Experiment.objects.all() if state is None else Experiment.objects.filter(state=state)
        return list(rows.values(*self.columns))
