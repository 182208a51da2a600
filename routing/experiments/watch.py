"""The controller's part: count what was served and said, ramp what keeps its guardrails, roll back what does not."""

from __future__ import annotations

import datetime
import logging

from django.db import DatabaseError
from django.utils import timezone

from mmserve.errors import Conflict
from routing.actions.experiments import ramp_experiment, roll_back_experiment
from routing.experiments.report import Report, report_of
from routing.experiments.settle import forget, join_feedback
from routing.feedback_rows import copy_traits
from routing.models.experiments import LIVE, ArmTotals, Experiment, State

log = logging.getLogger(__name__)

ACTOR = "controller"
EVERY_S = 5.0
FORGET_EVERY_S = 3600.0


class ExperimentWatch:
    """Looks at every live experiment whose numbers have changed; one leader owns it."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")
        self._forgot_at = float("-inf")
        self._seen: dict[int, tuple[object, ...]] = {}

    def step(self, monotonic: float) -> None:
        """A pass, if one is due."""
        if monotonic - self._looked_at < EVERY_S:
            return
        self._looked_at = monotonic
        join_feedback()
        copy_traits()
        self.look()
        # Much that is old goes over several passes: none of them may keep the controller from its other work.
        if monotonic - self._forgot_at >= FORGET_EVERY_S and not forget():
            self._forgot_at = monotonic

    def look(self, now: datetime.datetime | None = None) -> None:
        """Judge each live experiment once."""
        now = now or timezone.now()
        rows = list(Experiment.objects.filter(state__in=LIVE).select_related("group", "alias__model"))
        stamps: dict[int, list[object]] = {row.pk: [row.revision] for row in rows}
        totals = ArmTotals.objects.filter(experiment__in=stamps).order_by("pk")
        for experiment, requests, at in totals.values_list("experiment", "requests", "updated_at"):
            stamps[experiment] += [requests, at]
        for row in rows:
            due = row.state == State.RAMPING and step_is_due(row, now)
            stamp = tuple(stamps[row.pk])
            if not due and self._seen.get(row.pk) == stamp:
                continue
            self._seen[row.pk] = stamp
            try:
                judge(row, now=now, due=due)
            except Conflict as error:
                log.info("%s is looked at again: %s", row.name, error.message)
            except DatabaseError:
                raise
            except Exception:
                # A bug in one experiment's numbers must not keep the controller from its other work.
                log.exception("%s cannot be judged", row.name)
        self._seen = {pk: stamp for pk, stamp in self._seen.items() if pk in stamps}


def judge(row: Experiment, *, now: datetime.datetime, due: bool) -> None:
    """Roll back on a broken guardrail or a mismatch; else take the next step if it is due and nothing is tight."""
    report = report_of(row, now=now)
    reason = why_not(report)
    if reason:
        roll_back_experiment(row, actor=ACTOR, reason=reason, report=report)
        log.warning("%s was rolled back: %s", row.name, reason)
    elif due and not waits_for(report):
        ramp_experiment(
            row, actor=ACTOR, reason="The step was long enough and kept its guardrails.", report=report
        )


def why_not(report: Report) -> str:
    """Why this experiment must not go on; empty if it may."""
    if report.mismatch.broken:
        found = ", ".join(f"{one.units} in {one.arm.name}" for one in report.arms)
        promised = ", ".join(f"{one.share:.0%}" for one in report.arms)
        return (
            f"Sample-ratio mismatch: {found}, where the shares are {promised} (p = {report.mismatch.p:.2g})."
        )
    if report.broken:
        return f"Guardrail broken: {report.broken[0].words}."
    return ""


def step_is_due(row: Experiment, now: datetime.datetime) -> bool:
    """Whether the present step has lasted long enough."""
    return row.step_at is not None and now - row.step_at >= datetime.timedelta(minutes=row.step_minutes)


def waits_for(report: Report) -> str:
    """What keeps a step waiting, however long it has lasted; empty if nothing does."""
    row = report.experiment
    few = [one for one in report.arms if one.step_requests < row.step_requests]
    if few:
        have = ", ".join(f"{one.arm.name} has {one.step_requests}" for one in few)
        return f"{have} of the {row.step_requests} requests that a step needs of each arm."
    if report.tight:
        return f"{report.tight[0].words}."
    early = [one for one in report.guardrails if one.state == "early"]
    return f"{early[0].words}." if early else ""
