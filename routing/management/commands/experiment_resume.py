"""`manage.py experiment_resume NAME`"""

from __future__ import annotations

from routing.actions.experiments import resume_experiment
from routing.experiments.step_command import StepCommand


class Command(StepCommand):
    help = "Go on where it was paused. Exit codes: 0 done, 3 no such experiment, 4 refused in its state."
    step = staticmethod(resume_experiment)
