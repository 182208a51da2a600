"""Routes: create, change, delete. Each is a transaction with its event and the next configuration revision."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from mmserve.errors import Conflict, InvalidRequest, ModelNotFound, NotFound
from registry.actions.editing import check_editable
from registry.lookup import find_candidate
from registry.models import Alias, Event, Model, ModelVersion
from registry.revision import bump
from registry.saving import save_checked
from routing.core.route import Policy
from routing.models.routes import MAX_CANDIDATES, Route, RouteCandidate

FIELDS = (
    "description",
    "enabled",
    "policy",
    "weight_quality",
    "weight_cost",
    "weight_latency",
    "weight_load",
    "require",
    "max_cost_usd",
    "max_ttft_ms",
    "max_tpot_ms",
    "min_context",
    "first_token_ms",
    "hedge_percent",
    "no_fallback_on",
)
EDITABLE = frozenset(FIELDS)
CANDIDATE_FIELDS = ("target", "weight", "note")

Line = Mapping[str, Any]  # target, weight, note


@transaction.atomic
def create_route(
    name: str, *, actor: str, candidates: Sequence[Line] = (), reason: str = "", **fields: Any
) -> Route:
    """A route under a name that no model has."""
    check_editable(fields, EDITABLE)
    if Model.objects.filter(name=name).exists():
        raise Conflict(f"There is a model {name!r}: a route needs a name of its own.", param="name")
    route = Route(name=name, **fields)
    save_checked(route, unique=f"There is a route {name!r} already.")
    lines = checked_lines(candidates)
    check_serves(route, lines)
    _write(route, lines)
    bump("route.created", name, actor, reason, portable(route))
    return route


@transaction.atomic
def update_route(
    route: Route,
    *,
    actor: str,
    candidates: Sequence[Line] | None = None,
    expected_revision: int | None = None,
    reason: str = "",
    **changes: Any,
) -> Route:
    """Change what a route does; ``candidates`` replaces the whole list. A loser of a race gets Conflict."""
    check_editable(changes, EDITABLE)
    before = portable(route)
    changed = {field: value for field, value in changes.items() if getattr(route, field) != value}
    if candidates is None and changed.get("enabled"):
        # Switched off, it held nobody back: what it names may be gone.
        candidates = before["candidates"]
    lines = None if candidates is None else checked_lines(candidates)
    if lines == before["candidates"]:
        lines = None
    if not changed and lines is None:
        return route
    expected = route.revision if expected_revision is None else expected_revision
    moved = Route.objects.filter(pk=route.pk, revision=expected).update(
        revision=F("revision") + 1, updated_at=timezone.now()
    )
    if not moved:
        raise Conflict(_who_changed_it(route, expected))
    for field, value in changed.items():
        setattr(route, field, value)
    route.revision = expected + 1
    save_checked(route, unique=f"There is a route {route.name!r} already.")
    check_serves(route, before["candidates"] if lines is None else lines)
    if lines is not None:
        _write(route, lines)
    route = Route.objects.get(pk=route.pk)
    after = portable(route)
    shown = {name: [before[name], after[name]] for name in after if before[name] != after[name]}
    bump("route.updated", route.name, actor, reason, {"changed": shown, "route_revision": route.revision})
    return route


@transaction.atomic
def delete_route(route: Route, *, actor: str, reason: str = "") -> None:
    """Its name means nothing from now on."""
    gone = portable(route)
    route.delete()
    bump("route.deleted", route.name, actor, reason, gone)


def find_route(name: str) -> Route:
    """The route of this name; NotFound offers near names."""
    route = Route.objects.filter(name=name[:200]).first()
    if route is None:
        near = difflib.get_close_matches(name[:200], Route.objects.values_list("name", flat=True)[:1000], 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise NotFound(f"There is no route {name[:200]!r}.{hint}", param="name")
    return route


def portable(route: Route, candidates: Sequence[Line] | None = None) -> dict[str, Any]:
    """All that an operator decides about a route, as JSON has it; with these candidates in place of its own."""
    found = {name: getattr(route, name) for name in FIELDS}
    cost = found["max_cost_usd"]
    found["max_cost_usd"] = None if cost is None else format(Decimal(str(cost)).normalize(), "f")
    lines = list(route.candidates.values(*CANDIDATE_FIELDS) if candidates is None else candidates)
    return {**found, "candidates": lines}


def on_model_name_proposed(name: str, **_: Any) -> None:
    """A model may not take a route's name."""
    if Route.objects.filter(name=name).exists():
        raise Conflict(f"There is a route {name!r}: a model needs a name of its own.", param="name")


def on_version_retiring(version: ModelVersion, **_: Any) -> None:
    """A version that a route names stays until the route lets it go."""
    names = {version.served_id}
    for alias in Alias.objects.filter(version=version).select_related("model"):
        names |= _names_of(alias)
    _refuse_if_named(names)


def on_alias_retiring(alias: Alias, **_: Any) -> None:
    """An alias that a route names, by itself or by its model's name, stays as well."""
    _refuse_if_named(_names_of(alias))


def _names_of(alias: Alias) -> set[str]:
    return {str(alias), alias.model.name} if alias.is_default else {str(alias)}


def _refuse_if_named(names: set[str]) -> None:
    line = (
        RouteCandidate.objects.filter(target__in=names, route__enabled=True).select_related("route").first()
    )
    if line is not None:
        raise Conflict(
            f"The route {line.route.name} names {line.target}: take it off the route, or switch the route off, first."
        )


def checked_lines(
    candidates: Sequence[Line], look_up: Callable[[str], object] | None = None
) -> list[dict[str, Any]]:
    """The candidates with all their fields, checked one by one; ``look_up`` raises ModelNotFound."""
    if len(candidates) > MAX_CANDIDATES:
        raise InvalidRequest(
            f"candidates: {len(candidates)} are more than {MAX_CANDIDATES}", param="candidates"
        )
    found: list[dict[str, Any]] = []
    for place, line in enumerate(candidates):
        param = f"candidates[{place}]"
        row = RouteCandidate(**line)
        try:
            row.clean_fields(exclude=["route"])
        except ValidationError as error:
            field, messages = next(iter(error.message_dict.items()))
            raise InvalidRequest(f"{param}.{field}: {messages[0]}", param=f"{param}.{field}") from error
        try:
            (look_up or find_candidate)(row.target)
        except ModelNotFound as error:
            raise InvalidRequest(f"{param}.target: {error.message}", param=f"{param}.target") from error
        if any(known["target"] == row.target for known in found):
            raise InvalidRequest(f"{param}.target: {row.target!r} stands twice", param=f"{param}.target")
        found.append({name: getattr(row, name) for name in CANDIDATE_FIELDS})
    return found


def check_serves(route: Route, lines: Sequence[Line]) -> None:
    """Refuse a route that is on and could choose nobody."""
    if not route.enabled:
        return
    if not lines:
        raise InvalidRequest(
            "candidates: a route that is on needs one at least; add one, or switch it off", param="candidates"
        )
    if route.policy == Policy.WEIGHTED and not any(line["weight"] for line in lines):
        raise InvalidRequest(
            "candidates: with the policy weighted one of them at least needs a weight above 0",
            param="candidates",
        )


def _write(route: Route, lines: Sequence[Line]) -> None:
    route.candidates.all().delete()
    RouteCandidate.objects.bulk_create(
        RouteCandidate(route=route, position=place, **line) for place, line in enumerate(lines)
    )


def _who_changed_it(route: Route, expected: int) -> str:
    found = Route.objects.filter(pk=route.pk).first()
    if found is None:
        return f"The route {route.name} is gone."
    last = Event.objects.filter(subject=route.name, kind="route.updated").first()
    who = f": {last.actor} changed it at {last.at:%Y-%m-%d %H:%M:%S} UTC" if last else ""
    return f"The route {route.name} is at revision {found.revision}, not {expected}{who}."
