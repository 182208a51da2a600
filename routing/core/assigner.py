"""An experiment's arm in the place of what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from routing.core.assignment import Subject
from routing.core.decision import CHAIN, Assigned, Assignment, Decision, RequestFacts, decide_among
from routing.core.live import DeploymentLoad, LiveColumns
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
        slate = table.slate_of_arm(version, slate)
    return Assigned(slate=slate, assignments=(exposure,))


def decide_in_experiments(
    table: RoutingTable, live: LiveColumns | Mapping[str, DeploymentLoad], request: RequestFacts
) -> Decision:
    """Decide with the experiments that run. A unit stays in its arm, whoever serves it in the end (intention to treat).

    Where its arm cannot serve, what was asked for does; a route's own chain comes after the arm, for when it fails.
    """
    asked = table.slate(request.model)
    assigned = assign_arm(table, asked, request)
    decision = decide_among(table, live, request, assigned)
    if assigned.slate is asked:
        return decision
    is_enough = asked.route is None or request.wishes.no_fallback
    if decision.chain and is_enough:
        return decision
    without = decide_among(table, live, request, Assigned(slate=asked, assignments=assigned.assignments))
    if not decision.chain:
        return without
    known = {link.id for link in decision.chain}
    after = (link for link in without.chain if link.id not in known)
    return replace(decision, chain=(*decision.chain, *after)[:CHAIN])


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
