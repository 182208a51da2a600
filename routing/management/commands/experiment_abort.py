"""`manage.py experiment_abort NAME`"""

from __future__ import annotations

from routing.actions.experiments import roll_back_experiment
from routing.experiments.step_command import StepCommand


class Command(StepCommand):
    help = (
        "End it and give everybody what the id means without it. "
        "Exit codes: 0 done, 3 no such experiment, 4 refused in its state."
    )
    step = staticmethod(roll_back_experiment)
