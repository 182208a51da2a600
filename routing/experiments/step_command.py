"""The base of the commands that take one step of an experiment's life."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from routing.actions.experiments import find_experiment
from routing.models.experiments import Experiment


class StepCommand(DataCommand):
    """``step`` is the action."""

    step: Callable[..., Experiment]

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        add_reason(parser)

    def more(self, options: dict[str, Any]) -> dict[str, Any]:
        """What else the action is given."""
        return {}

    def run(self, **options: Any) -> dict[str, Any]:
        row = find_experiment(options["name"])
        row = type(self).step(row, actor=actor(), reason=options["reason"], **self.more(options))
        winner = row.winner.name if row.winner else None
        return {"name": row.name, "state": row.state, "exposure": row.exposure, "winner": winner}
