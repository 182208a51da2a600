"""Who serves a request, in which order, and why the others do not. Pure: no I/O, no clock.

A decision is arithmetic on columns (one row a target), so that hundreds of candidates cost little more than one.
The words of it are made when somebody asks: :meth:`Decision.explained`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from routing.core import scorer
from routing.core.chain import CHAIN, Link
from routing.core.facts import RequestFacts
from routing.core.filters import (
    BREAKER_OPEN,
    CAUSES,
    LOADING,
    NO_CHAT_TEMPLATE,
    NO_REPLICA,
    NOT_ALLOWED,
    Filter,
    Kind,
    Predicted,
    filters_of,
    may_not_fit,
)
from routing.core.live import (
    KV,
    LOAD,
    READY,
    STREAMS,
    TPOT,
    TTFT,
    TTFT_PER_TOKEN,
    DeploymentLoad,
    Floats,
    LiveColumns,
)
from routing.core.policies import busy, figures, ties_by_load
from routing.core.route import Cause
from routing.core.slate import Bools, Slate
from routing.core.table import RoutingTable

__all__ = [
    "BREAKER_OPEN",
    "LOADING",
    "NOT_ALLOWED",
    "NO_CHAT_TEMPLATE",
    "NO_REPLICA",
    "Assigned",
    "Assigner",
    "Assignment",
    "Candidate",
    "Decision",
    "DeploymentLoad",
    "Explanation",
    "Kind",
    "Link",
    "RequestFacts",
    "decide",
]


Places = npt.NDArray[np.intp]


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment that this request takes part in; ``unit`` is hashed."""

    experiment: str
    arm: str
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One target that was looked at; ``reasons`` says why it is not eligible."""

    id: str
    eligible: bool
    reasons: tuple[str, ...]
    scores: Mapping[str, float]
    kinds: tuple[Kind, ...] = ()  # of the filters that took it out, as the reasons are
    served_id: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A decision in plain values, to be shown or kept."""

    id: str
    revision: int
    model: str  # as it was asked for
    route: str | None
    policy: str
    served_id: str
    chosen: str | None
    chain: tuple[Link, ...]
    candidates: tuple[Candidate, ...]
    assignments: tuple[Assignment, ...] = ()
    problems: tuple[str, ...] = ()  # candidates of the route that point to nothing


class Judgement(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the decision saw, as columns: copies, so that it can be explained later."""

    slate: Slate
    live: Floats
    predicted: Predicted
    quality: Floats
    filters: list[Filter]
    eligible: Bools
    figures: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """The outcome: ``chain`` is the first choice, then the fallbacks, in order."""

    id: str
    revision: int
    model: str  # as it was asked for
    route: str | None
    served_id: str  # of the first choice; without one, of the only version, or the route
    chain: Sequence[Link]
    assignments: tuple[Assignment, ...]
    judgement: Judgement

    @property
    def chosen(self) -> str | None:
        """The deployment of the first choice."""
        return self.chain[0].id if self.chain else None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Everybody who was looked at, in words and figures."""
        return tuple(_candidate(self.judgement, place) for place in range(len(self.judgement.slate)))

    @property
    def looked_at(self) -> int:
        """How many candidates there are."""
        return len(self.judgement.slate)

    def explained(self, most: int | None = None) -> Explanation:
        """All of it as plain values; of more candidates than ``most``, those of the chain and the first others."""
        places: Iterable[int] = range(self.looked_at)
        if most is not None and self.looked_at > most:
            in_chain = {link.id for link in self.chain}
            ids = self.judgement.slate.ids
            places = sorted(places, key=lambda place: ids[place] not in in_chain)[:most]
        return Explanation(
            id=self.id,
            revision=self.revision,
            model=self.model,
            route=self.route,
            policy=self.judgement.slate.policy.value,
            served_id=self.served_id,
            chosen=self.chosen,
            chain=tuple(self.chain),
            candidates=tuple(_candidate(self.judgement, place) for place in places),
            assignments=self.assignments,
            problems=self.judgement.slate.problems,
        )


class Assigned(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the experiments say: who may serve now, and which arms the request is in."""

    slate: Slate
    assignments: tuple[Assignment, ...] = ()


# The slate that was asked for becomes the one of an arm, or stays.
Assigner = Callable[[RoutingTable, Slate, RequestFacts], Assigned]


def no_experiments(table: RoutingTable, slate: Slate, request: RequestFacts) -> Assigned:
    """Nothing runs."""
    return Assigned(slate=slate)


def decide(
    table: RoutingTable,
    live: LiveColumns | Mapping[str, DeploymentLoad],
    request: RequestFacts,
    *,
    assign: Assigner = no_experiments,
) -> Decision:
    """Filter and order everybody who could serve what was asked for; ModelNotFound for an unknown id."""
    assigned = assign(table, table.slate(request.model), request)
    return decide_among(table, live, request, assigned)


def decide_among(
    table: RoutingTable,
    live: LiveColumns | Mapping[str, DeploymentLoad],
    request: RequestFacts,
    assigned: Assigned,
) -> Decision:
    """The same for a slate that is at hand: an arm's, or a draft's."""
    slate = assigned.slate
    if not isinstance(live, LiveColumns):
        live = table.columns(live)
    judgement = judge(slate, live.data.take(slate.rows, axis=1), request, any_broken=live.any_broken)
    return decision_of(table, request, assigned, judgement, chain_of(judgement, request))


def decision_of(
    table: RoutingTable,
    request: RequestFacts,
    assigned: Assigned,
    judgement: Judgement,
    chain: Sequence[Link],
) -> Decision:
    """What was found, as a decision."""
    slate = assigned.slate
    return Decision(
        id=request.decision_id,
        revision=table.revision,
        model=request.model,
        route=slate.route,
        served_id=chain[0].served_id if chain else slate.id,
        chain=chain,
        assignments=assigned.assignments,
        judgement=judgement,
    )


def judge(slate: Slate, columns: Floats, request: RequestFacts, *, any_broken: bool) -> Judgement:
    """Filters and figures of every target; ``columns`` is a copy of the live state of each."""
    predicted = predict(slate, columns, request)
    filters = filters_of(slate, columns, predicted, request, any_broken=any_broken)
    out = filters[0].out.copy()
    for one in filters[1:]:
        out |= one.out
    tight = may_not_fit(slate, columns, request)
    if tight is not None:
        with_tight = out | tight.out
        if not (with_tight if slate.own is None else with_tight[slate.own]).all():
            out = with_tight
            filters.append(tight)
    judged = slate.judged
    if judged is not None and request.traits is not None:
        quality = scorer.quality(judged, request.traits)
    else:
        quality = slate.quality
    found = Judgement(
        slate=slate,
        live=columns,
        predicted=predicted,
        quality=quality,
        filters=filters,
        eligible=~out,
        figures=figures(slate, columns, predicted, quality, request),
    )
    withheld = None
    if slate.own is not None:
        withheld = _stand_ins_withheld(found, slate.own, request)
    elif any_broken and Cause.BREAKER not in slate.fallback_on:
        withheld = _others_withheld(found, request)
    if withheld is None:
        return found
    return msgspec.structs.replace(
        found, filters=[*filters, withheld], eligible=found.eligible & ~withheld.out
    )


def _stand_ins_withheld(found: Judgement, own: Bools, request: RequestFacts) -> Filter | None:
    """Those who stand in, where what was asked for cannot serve for another reason than the causes they are for."""
    slate = found.slate
    if found.eligible[own].any():
        return None
    causes = frozenset[Cause]() if request.wishes.no_fallback else slate.fallback_on
    others = [one.out for one in found.filters if CAUSES.get(one.kind) not in causes]
    if not np.logical_or.reduce([~own, *others]).all() and not (
        Cause.BREAKER not in causes and _is_left_alone(found, own)
    ):
        return None
    return Filter(Kind.CHAIN, found.eligible, lambda _: f"it does not stand in for {slate.id} in this case")


def _is_left_alone(found: Judgement, own: Bools) -> bool:
    """Whether one of these could serve, were its breaker not open."""
    others = [one.out for one in found.filters if one.kind is not Kind.BREAKER]
    return not np.logical_or.reduce([~own, *others]).all()


def _others_withheld(found: Judgement, request: RequestFacts) -> Filter | None:
    """Those who would come before the version that is meant, were it not for an open breaker."""
    slate = found.slate
    out = np.logical_or.reduce([one.out for one in found.filters if one.kind is not Kind.BREAKER])
    able = ~out
    if np.array_equal(able, found.eligible):
        return None  # the breakers that are open are others'
    places = _ordered(found, able.nonzero()[0], request)
    if found.eligible[places[0]]:
        return None
    first = places[0]
    of_it = slate.hashes[places] == slate.hashes[first]
    serve = of_it & found.eligible[places]
    before = int(serve.argmax()) if serve.any() else len(places)
    withheld = np.zeros(len(slate), dtype=np.bool_)
    withheld[places[:before][~of_it[:before]]] = True
    withheld &= found.eligible
    if not withheld.any():
        return None
    return Filter(
        Kind.CHAIN,
        withheld,
        lambda _: f"nobody takes the place of {slate.ids[first]}, whose circuit breaker is open",
    )


def predict(slate: Slate, live: Floats, request: RequestFacts) -> Predicted:
    """Cost and latency of this request at every target; what has no price costs nothing."""
    prompt, output = request.prompt_tokens_about, request.output_tokens_about
    ttft_s = live[TTFT] + live[TTFT_PER_TOKEN] * prompt
    tpot_s = live[TPOT]
    cost_usd = slate.price_input * prompt + slate.price_output * output
    if slate.hourly:
        # The share of a second that one of the running streams takes.
        cost_usd += slate.price_second * (tpot_s * output) / (live[STREAMS] + 1.0)
    return Predicted(cost_usd=cost_usd, ttft_s=ttft_s, tpot_s=tpot_s)


def chain_of(judgement: Judgement, request: RequestFacts) -> tuple[Link, ...]:
    """The eligible in order: who is preferred, then by the policy, then by load, then by id."""
    slate = judgement.slate
    places = _ordered(judgement, judgement.eligible.nonzero()[0], request)
    places = places[: 1 if request.wishes.no_fallback else CHAIN]
    ids, versions, predicted = slate.ids, slate.versions, judgement.predicted
    return tuple(
        Link(ids[place], versions[place].served_id, not ready, ttft_s, tpot_s, cost_usd)
        for place, ready, ttft_s, tpot_s, cost_usd in zip(
            places.tolist(),
            judgement.live[READY][places].tolist(),
            predicted.ttft_s[places].tolist(),
            predicted.tpot_s[places].tolist(),
            predicted.cost_usd[places].tolist(),
            strict=True,
        )
    )


def _ordered(judgement: Judgement, places: Places, request: RequestFacts) -> Places:
    slate, prefer = judgement.slate, request.wishes.prefer
    if len(places) < 2:
        return places
    figures = judgement.figures[places]
    # Nobody stands in for a model because a request likes it better.
    if prefer and slate.own is None:
        liked = -np.sum([slate.preferred(wish)[places] for wish in prefer], axis=0)
        order = np.lexsort((busy(judgement.live)[places], figures, liked))
    elif ties_by_load(slate.policy):
        order = np.lexsort((busy(judgement.live)[places], figures))
    else:
        order = figures.argsort(kind="stable")
    return places[order]


def _candidate(judgement: Judgement, place: int) -> Candidate:
    slate, live, predicted = judgement.slate, judgement.live, judgement.predicted
    out = [one for one in judgement.filters if one.out[place]]
    reasons = tuple(one.reason(place) for one in out)
    scores = {
        "score": judgement.figures[place],
        "weight": slate.weight[place],
        "quality": judgement.quality[place],
        "cost_usd": predicted.cost_usd[place],
        "ttft_s": predicted.ttft_s[place],
        "tpot_s": predicted.tpot_s[place],
        "load": live[LOAD, place],
        "kv_usage": live[KV, place],
        "ready": live[READY, place],
    }
    return Candidate(
        id=slate.ids[place],
        served_id=slate.versions[place].served_id,
        eligible=not reasons,
        reasons=reasons,
        kinds=tuple(one.kind for one in out),
        # JSON has no infinity: a share of nothing has no figure.
        scores={name: float(value) for name, value in scores.items() if np.isfinite(value)},
        note=slate.notes[place],
    )
