"""`manage.py experiment_ramp NAME`"""

from __future__ import annotations

from routing.actions.experiments import ramp_experiment
from routing.experiments.step_command import StepCommand


class Command(StepCommand):
    help = "Take the next step of a ramp. Exit codes: 0 done, 3 no such experiment, 4 refused in its state."
    step = staticmethod(ramp_experiment)
