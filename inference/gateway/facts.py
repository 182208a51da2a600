"""What the routing core is told of a request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inference.gateway.auth import KeyGrant
from inference.gateway.plan import Plan, estimate_tokens, longest_prompt_bound, text_of
from inference.gateway.wire import constraints
from routing.core.decision import RequestFacts
from routing.core.route import Policy
from routing.core.scorer import traits_of
from routing.core.table import RoutingTable

# Capabilities that a body can need by itself.
JSON = ("json",)


def facts_of(plan: Plan, decision_id: str, grant: KeyGrant, table: RoutingTable) -> RequestFacts:
    """All that a decision needs; what is dear to find out only where the candidates differ in it."""
    slate = table.slate(plan.model)
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
        prompt_tokens_bound=longest_prompt_bound(plan) if slate.contexts_differ else None,
        prompt_tokens_estimate=estimate_tokens(plan),
        max_tokens=plan.sampling.max_tokens,
        choices=plan.choices,
        deadline_s=plan.deadline_s,
        asks=JSON if constraints(plan.sampling) else (),
        wishes=plan.wishes,
        allowed=grant.allowed_models,
        key=grant.id,
        traits=traits_of(text_of(plan)) if slate.judged is not None else None,
        **units,
    )


def with_traits(facts: RequestFacts, plan: Plan, table: RoutingTable) -> RequestFacts:
    """The facts as a decision is kept: with what a scorer can learn from, though none has judged by it yet."""
    slate = table.known_slate(plan.model)
    if facts.traits is not None or slate is None or slate.policy is not Policy.BALANCED:
        return facts
    return replace(facts, traits=traits_of(text_of(plan)))
