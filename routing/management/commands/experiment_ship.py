"""`manage.py experiment_ship NAME [--winner ARM] [--alias ID]`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from routing.actions.experiments import ship_experiment
from routing.experiments.step_command import StepCommand


class Command(StepCommand):
    help = (
        "Make the winner what the alias means, and end the experiment. "
        "Exit codes: 0 done, 3 no such experiment, 4 refused in its state, 5 no such arm or alias."
    )
    step = staticmethod(ship_experiment)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--winner", help="an arm's name; the concluded experiment's, if left out")
        parser.add_argument("--alias", help="name or name@alias; the experiment's target, if left out")

    def more(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"winner": options["winner"], "alias": options["alias"]}
