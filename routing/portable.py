"""Routes as a part of the registry's document, so that they can live in git beside the models that they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec

from mmserve.errors import Conflict, InvalidRequest, ModelNotFound
from registry.lookup import find_candidate
from registry.models import Model
from registry.portable.sections import Change, bound
from registry.saving import check
from routing.actions import routes as actions
from routing.core.route import Cause, Policy
from routing.models.routes import MAX_HEDGE_PERCENT, MAX_WEIGHT, Route

Weight = Annotated[float, msgspec.Meta(ge=0, le=MAX_WEIGHT)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=MAX_HEDGE_PERCENT)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class PortableLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One candidate: a model's name, name@version or name@alias."""

    target: str
    weight: Weight = 1.0
    note: str = ""


class PortableRoute(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One route; the candidates stand in the order of priority."""

    name: str
    description: str = ""
    enabled: bool = True
    policy: Policy = Policy.WEIGHTED
    weight_quality: Weight = 0.4
    weight_cost: Weight = 0.2
    weight_latency: Weight = 0.3
    weight_load: Weight = 0.1
    require: list[str] = []
    max_cost_usd: str | None = None
    max_ttft_ms: Positive | None = None
    max_tpot_ms: Positive | None = None
    min_context: Positive | None = None
    first_token_ms: Positive | None = None
    hedge_percent: Percent = 0.0
    no_fallback_on: list[Cause] = []
    candidates: list[PortableLine] = []


class Routes:
    """registry.portable.sections.Section."""

    name = "routes"
    noun = "route"
    row = PortableRoute

    def export(self) -> list[PortableRoute]:
        """All of them, by name."""
        return [
            msgspec.convert({"name": route.name, **actions.portable(route)}, PortableRoute)
            for route in Route.objects.order_by("name")
        ]

    def plan(
        self, wanted: Sequence[PortableRoute], before: Mapping[str, str], *, prune: bool
    ) -> Iterator[Change]:
        """Routes to make, to change and (``prune``) to delete."""
        # Those that go make room for names.
        if prune:
            for gone in Route.objects.exclude(name__in=[route.name for route in wanted]):
                yield Change("delete route", gone.name, {}, bound(actions.delete_route, gone))
        for place, route in enumerate(wanted):
            try:
                yield from _route(route, before)
            except InvalidRequest as error:
                param = f"routes[{place}].{error.param or ''}".rstrip(".")
                raise InvalidRequest(f"route {route.name}: {error.message}", param=param) from error


def _route(wanted: PortableRoute, before: Mapping[str, str]) -> Iterator[Change]:
    row = Route.objects.filter(name=wanted.name).first()
    fields = {
        **msgspec.structs.asdict(wanted),
        "policy": wanted.policy.value,
        "no_fallback_on": [cause.value for cause in wanted.no_fallback_on],
        "max_cost_usd": _usd(wanted.max_cost_usd),
    }
    name, lines = fields.pop("name"), fields.pop("candidates")
    check(Route(name=name, **fields))
    waits: list[str] = []

    def look_up(target: str) -> None:
        try:
            find_candidate(target)
        except ModelNotFound:
            if target not in before:
                raise
            waits.append(before[target])

    lines = actions.checked_lines([msgspec.structs.asdict(line) for line in lines], look_up)
    waiting = next(filter(None, waits), "")
    if row is None:
        if name in before or Model.objects.filter(name=name).exists():
            raise Conflict(f"There is a model {name!r}: a route needs a name of its own.", param="routes")
        shown = {"candidates": [line["target"] for line in lines], **_shown(wanted)}
        make = bound(actions.create_route, name, candidates=lines, **fields)
        yield Change("create route", name, shown, make, waiting)
        return
    known, new = actions.portable(row), actions.portable(Route(name=name, **fields), lines)
    changed = {field: [known[field], value] for field, value in new.items() if known[field] != value}
    if changed:
        change = bound(actions.update_route, row, candidates=lines, **fields)
        yield Change("change route", name, changed, change, waiting)


def _shown(wanted: PortableRoute) -> dict[str, Any]:
    """What is not as it is in every new route."""
    found: dict[str, Any] = msgspec.to_builtins(wanted)
    return {name: value for name, value in found.items() if name not in ("name", "candidates")}


def _usd(text: str | None) -> Decimal | None:
    try:
        return None if text is None else Decimal(text)
    except InvalidOperation:
        raise InvalidRequest(f"max_cost_usd: {text!r} is no amount", param="max_cost_usd") from None
