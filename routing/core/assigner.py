"""An experiment's arm in the place of what was asked for: decide() calls this with every request."""

from __future__ import annotations

from routing.core.assignment import Subject
from routing.core.decision import Assigned, Assignment, RequestFacts
from routing.core.slate import Slate
from routing.core.table import RoutingTable


def assign_arm(table: RoutingTable, slate: Slate, request: RequestFacts) -> Assigned:
    """The slate of the arm's version, if the request is in an experiment; the exposure either way.

    The holdout, and an arm whose version is gone from the table, are served by what was asked for.
    """
    if not table.experiments:
        return Assigned(slate=slate)
    found = table.experiments.assign(request.model, subject_of(request))
    if found is None:
        return Assigned(slate=slate)
    exposure = Assignment(
        experiment=found.experiment_name, arm=found.arm_name, unit=f"{found.phase}.{found.unit:016x}"
    )
    version = table.versions.get(found.served_id or "")
    if version is not None:
        slate = table.slate_of_version(version)
    return Assigned(slate=slate, assignments=(exposure,))


def subject_of(request: RequestFacts) -> Subject:
    """What experiments read of a request."""
    return Subject(
        request=request.decision_id,
        key=request.key,
        user=request.user,
        session=request.session,
        team=request.team,
        endpoint="chat.completions" if request.chat else "completions",
        language=request.language,
        tags=request.tags,
    )
