"""`manage.py experiment_pause NAME`"""

from __future__ import annotations

from routing.actions.experiments import pause_experiment
from routing.experiments.step_command import StepCommand


class Command(StepCommand):
    help = (
        "Give everybody what the id means without it, for now. "
        "Exit codes: 0 done, 3 no such experiment, 4 refused in its state."
    )
    step = staticmethod(pause_experiment)
