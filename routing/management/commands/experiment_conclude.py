"""`manage.py experiment_conclude NAME [--winner ARM]`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from routing.actions.experiments import conclude_experiment
from routing.experiments.step_command import StepCommand


class Command(StepCommand):
    help = (
        "End an experiment; nothing moves until a winner is shipped. "
        "Exit codes: 0 done, 3 no such experiment, 4 refused in its state, 5 no such arm."
    )
    step = staticmethod(conclude_experiment)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--winner", help="an arm's name")

    def more(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"winner": options["winner"]}
