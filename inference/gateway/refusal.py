"""Why nobody serves a request, as the error that helps most."""

from __future__ import annotations

from inference.gateway.holding import deadline_s_of, hold_of
from inference.gateway.live import LiveState
from inference.gateway.plan import Plan
from mmserve.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    MmserveError,
    ModelNotLoaded,
    PermissionDenied,
    Unavailable,
)
from routing.core.decision import NO_CHAT_TEMPLATE, Candidate, Decision, Kind
from routing.core.table import DeploymentEntry, RoutingTable

LOADING_RETRY_S = 2.0
MAX_NAMED = 8
# What the client can change about its request; the others pass, or are the operator's to mend.
CLIENTS = {Kind.CAPABILITY, Kind.CONTEXT, Kind.COST, Kind.KEY}


def nothing_serves(plan: Plan, decision: Decision, table: RoutingTable, live: LiveState) -> MmserveError:
    """The refusal of a request for which no candidate is eligible."""
    candidates = _meant(decision)
    if candidates and all(Kind.KEY in one.kinds for one in candidates):
        return PermissionDenied(
            f"The access key may not use {plan.model!r}.", param="model", code="model_not_allowed"
        )
    if decision.route is not None:
        return _no_candidate(decision, candidates, table, live)
    return _no_deployment(plan, decision, candidates, table, live)


def _meant(decision: Decision) -> tuple[Candidate, ...]:
    """Without those that only stand in for a model, and those that are out for another one's sake."""
    own = decision.judgement.slate.own
    return tuple(
        one
        for place, one in enumerate(decision.candidates)
        if (own is None or own[place]) and Kind.CHAIN not in one.kinds
    )


def _no_candidate(
    decision: Decision, candidates: tuple[Candidate, ...], table: RoutingTable, live: LiveState
) -> MmserveError:
    """The route's candidates, each with its reasons."""
    if not candidates:
        why = "; ".join(decision.judgement.slate.problems) or "it has none"
        return ModelNotLoaded(f"The route {decision.model!r} has no candidate: {why}", param="model")
    named = [f"{one.id}: {', '.join(one.reasons)}" for one in candidates[:MAX_NAMED]]
    if len(candidates) > MAX_NAMED:
        named.append(f"and {len(candidates) - MAX_NAMED} more")
    message = f"No candidate of {decision.model!r} can serve this. {'; '.join(named)}."
    if all(CLIENTS & set(one.kinds) for one in candidates):
        return InvalidRequest(message, param="model", code="no_eligible_candidate")
    if all(Kind.HEALTH in one.kinds for one in candidates):
        return ModelNotLoaded(message, param="model")
    late = [hold_of(table.deployments[one.id], live) for one in candidates if one.kinds == (Kind.LATE,)]
    retry_after_s = min((hold.retry_after_s for hold in late), default=LOADING_RETRY_S)
    return Unavailable(message, param="model", code="no_eligible_candidate", retry_after_s=retry_after_s)


def _no_deployment(
    plan: Plan,
    decision: Decision,
    candidates: tuple[Candidate, ...],
    table: RoutingTable,
    live: LiveState,
) -> MmserveError:
    served_id = decision.served_id
    entries = [entry for one in candidates if (entry := table.deployments.get(one.id)) is not None]
    ready = [entry for entry in entries if (load := live.loads.get(entry.id)) is not None and load.ready]
    for entry in ready:
        load = live.loads[entry.id]
        context = entry.limits.context_length or load.context_length
        prompt, output = plan.longest_token_prompt or 0, plan.sampling.max_tokens or 0
        if context and prompt + output > context:
            asked = (
                f"the prompt has {prompt} and up to {output} were asked for"
                if prompt
                else f"max_tokens asks for {output}"
            )
            return ContextLengthExceeded(
                f"{served_id} has a context of {context} tokens; {asked}.",
                param="prompt" if prompt > output else "max_tokens",
            )
    if any(NO_CHAT_TEMPLATE in one.reasons for one in candidates):
        return InvalidRequest(
            f"{served_id} has no chat template: use /v1/completions.",
            param="messages",
            code="unsupported_parameter",
        )
    late = next((one for one in candidates if one.kinds == (Kind.LATE,)), None)
    if late is not None:
        entry = table.deployments[late.id]
        return hold_of(entry, live).too_late(deadline_s_of(plan, entry))
    return _unmet(decision, candidates) or _not_up(served_id, entries, live)


def _unmet(decision: Decision, candidates: tuple[Candidate, ...]) -> MmserveError | None:
    """A wish of the request that no deployment keeps, though some could serve it otherwise."""
    healthy = [one for one in candidates if Kind.HEALTH not in one.kinds]
    if not healthy:
        return None
    reasons = "; ".join(dict.fromkeys(reason for one in healthy for reason in one.reasons))
    message = f"{decision.served_id} cannot serve this: {reasons}."
    if all(CLIENTS & set(one.kinds) for one in healthy):
        return InvalidRequest(message, param="model", code="no_eligible_candidate")
    return Unavailable(message, param="model", code="no_eligible_candidate", retry_after_s=LOADING_RETRY_S)


def _not_up(served_id: str, entries: list[DeploymentEntry], live: LiveState) -> MmserveError:
    given_up = next((entry for entry in entries if entry.failure), None)
    if given_up is not None:
        return never_up(given_up)
    loading = [entry for entry in entries if entry.id in live.loads or entry.wanted_replicas]
    if loading:
        stage = next((beat.stage for entry in loading if (beat := live.loading(entry.id))), "starting")
        return Unavailable(
            f"{served_id} is being loaded ({stage}).",
            param="model",
            code="model_loading",
            retry_after_s=LOADING_RETRY_S,
        )
    return ModelNotLoaded(
        f"{served_id} is not loaded. Load it with POST /v1/models/{served_id}/load.", param="model"
    )


def never_up(entry: DeploymentEntry) -> ModelNotLoaded:
    """The refusal of one that nobody tries to load any more."""
    return ModelNotLoaded(
        f"{entry.served_id} cannot be loaded: {entry.failure}. When that is mended, load it again with "
        f"POST /v1/models/{entry.served_id}/load.",
        param="model",
    )
