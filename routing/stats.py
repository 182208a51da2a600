"""How routes, versions and arms did over a window, from the minutes: counts, causes, latencies, costs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from django.utils import timezone

from routing.core import histogram
from routing.core.cost import in_usd
from routing.models import StatsMinute
from routing.rollup import MINUTE_KEYS, MINUTE_MAPS, MINUTE_SUMS, MINUTES_KEPT

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
GROUP = MINUTE_KEYS[1:]
MOST_WINDOW_S = int(MINUTES_KEPT.total_seconds())


def window_begin(window_s: int) -> datetime.datetime:
    """Whole minutes: the present one, and those before it that the window touches."""
    since = timezone.now() - datetime.timedelta(seconds=window_s)
    return since.replace(second=0, microsecond=0)


def stats(window_s: int, names: Mapping[str, str], limit: int) -> tuple[list[dict[str, Any]], int]:
    """A row for each route, version and arm that had a request, the busiest first; and how many were left out."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    rows = StatsMinute.objects.of_names(names).filter(minute__gte=window_begin(window_s))
    for row in rows.iterator(chunk_size=1000):
        place = tuple(getattr(row, name) for name in GROUP)
        sums = groups.get(place)
        if sums is None:
            sums = groups[place] = {**dict.fromkeys(MINUTE_SUMS, 0), **{name: {} for name in MINUTE_MAPS}}
        for name in MINUTE_SUMS:
            sums[name] += getattr(row, name)
        for name in MINUTE_MAPS:
            histogram.merge(sums[name], getattr(row, name))
    busiest = sorted(groups.items(), key=lambda one: (-one[1]["requests"], one[0]))
    return [_row(place, sums) for place, sums in busiest[:limit]], max(0, len(busiest) - limit)


def _row(place: tuple[str, ...], sums: dict[str, Any]) -> dict[str, Any]:
    return {
        **dict(zip(GROUP, place, strict=True)),
        **{name: sums[name] for name in MINUTE_SUMS if name != "cost_nano"},
        "errors": sums["errors"],
        "cost_usd": in_usd(sums["cost_nano"]),
        "ttft_s": quantiles(sums["ttft"]),
        "tpot_s": quantiles(sums["tpot"]),
        "e2e_s": quantiles(sums["e2e"]),
    }


def quantiles(buckets: Mapping[str, int]) -> dict[str, float | None]:
    """p50, p95 and p99 in seconds."""
    found = {name: histogram.quantile(buckets, share) for name, share in QUANTILES.items()}
    return {name: None if value is None else float(f"{value:.4g}") for name, value in found.items()}
