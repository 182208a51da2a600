"""What the routing core is told of a request."""

from __future__ import annotations

from typing import Any

from inference.gateway.auth import KeyGrant
from inference.gateway.plan import Plan, estimate_tokens
from routing.core.decision import RequestFacts
from routing.core.table import RoutingTable


def facts_of(plan: Plan, decision_id: str, grant: KeyGrant, table: RoutingTable) -> RequestFacts:
    """All that a decision needs; what is dear to find out only where the candidates differ in it."""
    units: dict[str, Any] = {}
    if table.experiments:
        units = {
            "user": plan.user,
            "session": plan.session,
            "team": grant.team,
            "language": plan.language,
            "tags": plan.tags,
        }
    return RequestFacts(
        decision_id=decision_id,
        model=plan.model,
        chat=plan.messages is not None,
        prompt_tokens=plan.longest_token_prompt,
        prompt_tokens_estimate=estimate_tokens(plan),
        max_tokens=plan.sampling.max_tokens,
        choices=plan.choices,
        deadline_s=plan.deadline_s,
        key=grant.id,
        **units,
    )
