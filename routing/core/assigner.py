"""An experiment's arm in the place of what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from routing.core.chain import ArmsChain, Link
from routing.core.decision import (
    Assigned,
    Assignment,
    Decision,
    RequestFacts,
    chain_of,
    decide_among,
    decision_of,
    judge,
)
from routing.core.live import DeploymentLoad, LiveColumns
from routing.core.slate import Slate
from routing.core.table import RoutingTable


def assign_arm(table: RoutingTable, slate: Slate, request: RequestFacts) -> Assigned:
    """The slate of the arm's version, if the request is in an experiment; the exposure either way.

    The holdout, and an arm whose version is gone from the table, are served by what was asked for.
    """
    if not table.experiments:
        return Assigned(slate=slate)
    found = table.experiments.assign(request.model, request)
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

    Where its arm cannot serve, what was asked for does; the chain of a route, or of a model with fallbacks, comes
    after the arm, for when it fails: it is worked out only then, from the live state as it is now.
    """
    asked = table.slate(request.model)
    assigned = assign_arm(table, asked, request)
    slate = assigned.slate
    if slate is asked:
        return decide_among(table, live, request, assigned)
    if not isinstance(live, LiveColumns):
        live = table.columns(live)
    any_broken = live.any_broken
    judgement = judge(slate, live.data.take(slate.rows, axis=1), request, any_broken=any_broken)
    own = chain_of(judgement, request)
    if not own and request.budget_left_usd is not None:
        # What was heard of a budget may be old, and moves nobody out of an arm: its ledger says whether it can pay.
        request = replace(request, budget_left_usd=None, budget="")
        judgement = judge(slate, live.data.take(slate.rows, axis=1), request, any_broken=any_broken)
        own = chain_of(judgement, request)
    if not own:
        return decide_among(table, live, request, Assigned(slate=asked, assignments=assigned.assignments))
    chain: Sequence[Link] = own
    if (asked.route is not None or asked.own is not None) and not request.wishes.no_fallback:
        seen = live.data.take(asked.rows, axis=1)
        chain = ArmsChain(own, lambda: chain_of(judge(asked, seen, request, any_broken=any_broken), request))
    return decision_of(table, request, assigned, judgement, chain)
