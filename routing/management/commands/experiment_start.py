"""`manage.py experiment_start NAME`"""

from __future__ import annotations

from routing.actions.experiments import start_experiment
from routing.experiments.step_command import StepCommand


class Command(StepCommand):
    help = "Start a draft. Exit codes: 0 done, 3 no such experiment, 4 refused in its state."
    step = staticmethod(start_experiment)
