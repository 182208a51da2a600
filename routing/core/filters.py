"""Hard filters: who is out, and why, in words that are only made when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from routing.core import live as columns
from routing.core.facts import RequestFacts
from routing.core.live import BREAKER, CONTEXT, READY, Floats
from routing.core.route import Cause
from routing.core.slate import Bools, Slate

NO_REPLICA = "no replica is ready"
LOADING = "its replica is still loading"
NO_CHAT_TEMPLATE = "the model has no chat template"
NOT_DEPLOYED = "nothing deploys it"
NOT_ALLOWED = "the key may not use it"
BREAKER_OPEN = "its circuit breaker is open"


class Kind(StrEnum):
    """What a filter looks at."""

    HEALTH = "health"
    LATE = "late"  # it could be loaded, but not in time
    CAPABILITY = "capability"
    CONTEXT = "context"
    KEY = "key"
    COST = "cost"
    BUDGET = "budget"
    LATENCY = "latency"
    BREAKER = "breaker"
    CHAIN = "chain"  # another one is meant, and nobody may take its place


# What is wrong with whom such a filter takes out, as a chain has it; what the client asks for is no cause.
CAUSES = {
    Kind.HEALTH: Cause.ERROR,
    Kind.LATE: Cause.TIMEOUT,
    Kind.LATENCY: Cause.TIMEOUT,
    Kind.CONTEXT: Cause.CONTEXT,
    Kind.BUDGET: Cause.BUDGET,
    Kind.BREAKER: Cause.BREAKER,
}


class Filter(NamedTuple):
    """Whom it takes out, and the reason of one of them."""

    kind: Kind
    out: Bools
    reason: Callable[[int], str]


class Predicted(NamedTuple):
    """What this request would cost and take at each target; latencies as the live state has them."""

    cost_usd: Floats
    ttft_s: Floats
    tpot_s: Floats


def filters_of(
    slate: Slate, live: Floats, predicted: Predicted, request: RequestFacts, *, any_broken: bool
) -> list[Filter]:
    """Every filter that this request and this slate need; ``any_broken``: some breaker somewhere is open."""
    found = [
        *_health(slate, live, request),
        *_capabilities(slate, request),
        *_context(slate, live, request),
        *_ceilings(slate, predicted, request),
    ]
    if request.allowed:
        found.append(Filter(Kind.KEY, slate.barred(request.allowed), lambda _: NOT_ALLOWED))
    if any_broken:
        found.append(Filter(Kind.BREAKER, live[BREAKER] > 0, lambda _: BREAKER_OPEN))
    return found


def _health(slate: Slate, live: Floats, request: RequestFacts) -> list[Filter]:
    absent = live[READY] == 0
    found = [Filter(Kind.HEALTH, absent & slate.never, lambda place: _why_not_ready(slate, live, place))]
    deadline_s = slate.deadline_s
    if request.deadline_s is not None:
        deadline_s = np.minimum(deadline_s, request.deadline_s)
    eta_s = live[columns.ETA]
    late = absent & slate.wakeable & (eta_s > deadline_s)
    if late.any():
        found.append(
            Filter(
                Kind.LATE,
                late,
                lambda place: (
                    f"it is not up, and is expected in {eta_s[place]:.0f} s: longer than this request "
                    f"may take ({deadline_s[place]:g} s)"
                ),
            )
        )
    return found


def _why_not_ready(slate: Slate, live: Floats, place: int) -> str:
    entry = slate.entries[place]
    if entry is None:
        return NOT_DEPLOYED
    if entry.failure:
        return f"it cannot be loaded: {entry.failure}"
    return LOADING if live[columns.LOADING, place] else NO_REPLICA


def _capabilities(slate: Slate, request: RequestFacts) -> list[Filter]:
    found = []
    if request.chat:
        found.append(Filter(Kind.CAPABILITY, slate.no_chat, lambda _: NO_CHAT_TEMPLATE))
    for capability in request.asks:
        found.append(Filter(Kind.CAPABILITY, slate.unable(capability), _lacks(capability)))
    for word in (*slate.constraints.require, *request.wishes.require):
        found.append(Filter(Kind.CAPABILITY, slate.lacking(word), _lacks(word)))
    return found


def _lacks(word: str) -> Callable[[int], str]:
    return lambda _: f"is not tagged {word}" if "=" in word else f"lacks {word}"


def _context(slate: Slate, live: Floats, request: RequestFacts) -> list[Filter]:
    needed: Floats | int = (request.prompt_tokens or 0) + (request.max_tokens or 0)
    if request.counted and not request.chat:
        # Where none was counted it is nan, which fmax passes over.
        needed = np.fmax(needed, _counts(slate, request))
    least = slate.constraints.min_context
    if isinstance(needed, int) and not (needed or least):
        return []
    context = _contexts(slate, live)
    return [
        Filter(
            Kind.CONTEXT,
            context < (np.maximum(needed, least) if least else needed),
            lambda place: (
                f"needs {_at(needed, place):.0f} tokens of context, has {context[place]:.0f}"
                if context[place] < _at(needed, place)
                else f"the route asks for {least} tokens of context, it has {context[place]:.0f}"
            ),
        )
    ]


def _at(values: Floats | int, place: int) -> float:
    return float(values if isinstance(values, int) else values[place])


def _counts(slate: Slate, request: RequestFacts) -> Floats:
    """The tokens of context that each target needs as its version's tokenizer counted; nan where none has."""
    known, more = dict(request.counted), request.max_tokens or 0
    found = (known.get(version.served_id) for version in slate.versions)
    return np.array([np.nan if one is None else one + more for one in found], dtype=np.float64)


def may_not_fit(slate: Slate, live: Floats, request: RequestFacts) -> Filter | None:
    """Who may be too small for a prompt that nobody counted exactly.

    To be used only while somebody else is left: if nobody surely fits, the engine that counts is the judge.
    """
    if request.prompt_tokens_bound is None or request.prompt_tokens is not None:
        return None
    most: Floats | int = request.prompt_tokens_bound + (request.max_tokens or 0)
    if request.counted:
        counts = _counts(slate, request)
        # A text that was counted either fits or is out already; of a chat, the bound has only become tighter.
        most = np.where(np.isnan(counts), most, counts if request.chat else 0)
    context = _contexts(slate, live)
    return Filter(
        Kind.CONTEXT,
        context < most,
        lambda place: f"may need up to {_at(most, place):.0f} tokens of context, has {context[place]:.0f}",
    )


def in_doubt(slate: Slate, live: Floats, request: RequestFacts, filters: Iterable[Filter]) -> list[str]:
    """The versions that only the bound on the prompt's tokens speaks against: a count would settle it."""
    tight = may_not_fit(slate, live, request)
    if tight is None or not tight.out.any():
        return []
    doubtful = tight.out.copy()
    for one in filters:
        if one.kind is not Kind.CONTEXT:
            doubtful &= ~one.out
    known = dict(request.counted)
    versions = dict.fromkeys(slate.versions[place].served_id for place in doubtful.nonzero()[0].tolist())
    return [served_id for served_id in versions if served_id not in known]


def _contexts(slate: Slate, live: Floats) -> Floats:
    if slate.context_known:
        return slate.context
    # What nobody knows fits everything.
    context = np.where(slate.context > 0, slate.context, live[CONTEXT])
    return np.where(context > 0, context, np.inf)


def _ceilings(slate: Slate, predicted: Predicted, request: RequestFacts) -> list[Filter]:
    own, wishes = slate.constraints, request.wishes
    found = []
    if (dollars := _tightest(own.max_cost_usd, wishes.max_cost_usd)) is not None:
        cost = predicted.cost_usd
        found.append(
            Filter(
                Kind.COST,
                cost > dollars,
                lambda at: f"costs about ${cost[at]:.6g}, the ceiling is ${dollars:.6g}",
            )
        )
    if (left := request.budget_left_usd) is not None:
        cost = predicted.cost_usd
        found.append(
            Filter(
                Kind.BUDGET,
                cost > left,
                lambda at: (
                    f"costs about ${cost[at]:.6g}, {request.budget or 'the budget'} has ${left:.6g} left"
                ),
            )
        )
    if (ttft_s := _tightest(own.max_ttft_s, wishes.max_ttft_s)) is not None:
        first = predicted.ttft_s
        found.append(
            Filter(
                Kind.LATENCY,
                first > ttft_s,
                lambda at: f"predicted TTFT {first[at] * 1000:.0f} ms, the ceiling is {ttft_s * 1000:.0f} ms",
            )
        )
    if (tpot_s := own.max_tpot_s) is not None:
        each = predicted.tpot_s
        found.append(
            Filter(
                Kind.LATENCY,
                each > tpot_s,
                lambda at: f"predicted TPOT {each[at] * 1000:.0f} ms, the ceiling is {tpot_s * 1000:.0f} ms",
            )
        )
    return found


def _tightest(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
