"""Routes and the scorer in use as values of the routing table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from routing.core.route import CandidateEntry, Cause, Constraints, Policy, RouteEntry, Weights
from routing.core.scorer import Scorer
from routing.models.routes import Route, RouteCandidate, TrainedScorer

MS = 1e-3


def route_entries() -> list[RouteEntry]:
    """All routes; two queries, however many they are."""
    lines: dict[int, list[tuple[str, float, str]]] = {}
    for route, *line in RouteCandidate.objects.values_list("route", "target", "weight", "note"):
        lines.setdefault(route, []).append(tuple(line))
    return [entry_of(row, lines.get(row.pk, ())) for row in Route.objects.all()]


def entry_of(row: Route, lines: Iterable[tuple[str, float, str]]) -> RouteEntry:
    """A route, stored or only filled in, with its lines in their order."""
    return RouteEntry(
        id=row.name,
        description=row.description,
        enabled=row.enabled,
        policy=Policy(row.policy),
        weights=Weights(
            quality=row.weight_quality,
            cost=row.weight_cost,
            latency=row.weight_latency,
            load=row.weight_load,
        ),
        constraints=Constraints(
            require=tuple(row.require),
            max_cost_usd=None if row.max_cost_usd is None else float(row.max_cost_usd),
            max_ttft_s=None if row.max_ttft_ms is None else row.max_ttft_ms * MS,
            max_tpot_s=None if row.max_tpot_ms is None else row.max_tpot_ms * MS,
            min_context=row.min_context,
        ),
        fallback_on=frozenset(Cause) - frozenset(map(Cause, row.no_fallback_on)),
        first_token_s=None if row.first_token_ms is None else row.first_token_ms * MS,
        hedge_share=row.hedge_percent / 100.0,
        candidates=tuple(
            CandidateEntry(target=target, weight=weight, note=note) for target, weight, note in lines
        ),
    )


def scorer_in_use() -> Scorer | None:
    """The trained scorer that judges now."""
    row = TrainedScorer.objects.filter(in_use=True).first()
    return None if row is None else scorer_of(row)


def scorer_of(row: TrainedScorer) -> Scorer:
    """A stored scorer as the core has it."""
    weights: Mapping[str, list[Any]] = row.weights
    return Scorer(name=str(row.number), weights={key: tuple(values) for key, values in weights.items()})
