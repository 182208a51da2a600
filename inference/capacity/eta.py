"""How long a model takes until it is up, learned from its earlier loads. Pure.

A load goes through three stages: it waits for memory (others drain), its files are fetched to the node, and its engine
loads. Each is a median in which recent loads weigh more: one slow disk years ago, or one today, moves it little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

KEPT = 9  # loads that are remembered of a deployment
FADES = 0.8  # what a load weighs beside the one after it
# Beyond so many times the longest that was ever seen, nobody knows any more.
OVERDUE = 1.5

WAIT, FETCH, LOAD = "wait", "fetch", "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class PastLoad:
    """What the stages of one load took; 0 for one that was not needed."""

    wait_s: float = 0.0
    fetch_s: float = 0.0
    load_s: float = 0.0


def recent_median(values: Sequence[float]) -> float | None:
    """The weighted median of values that are in the order of time; None of none."""
    if not values:
        return None
    weights = [FADES ** (len(values) - 1 - at) for at in range(len(values))]
    half = sum(weights) / 2
    passed = 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        passed += weight
        if passed >= half:
            return value
    return max(values)


def left_s(values: Sequence[float], elapsed_s: float) -> float | None:
    """What remains of a stage that has run for so long: of those that took longer, the median; None: nobody knows."""
    if not values:
        return None
    longer = [value for value in values if value > elapsed_s]
    if not longer:
        return 0.0 if elapsed_s <= max(values) * OVERDUE else None
    median = recent_median(longer)
    return None if median is None else median - elapsed_s


def usual_s(loads: Sequence[PastLoad]) -> float | None:
    """From the first request to being up, for one that nobody has asked for yet; None before the first load."""
    return _sum(_usual(loads, stage) for stage in (WAIT, FETCH, LOAD))


def remaining_s(
    loads: Sequence[PastLoad], stage: str, elapsed_s: float, *, fetch_left_s: float | None = None
) -> float | None:
    """Until it is up, from within a stage; ``fetch_left_s`` is what the fetch says itself, from its bytes."""
    if stage == LOAD:
        return left_s([load.load_s for load in loads], elapsed_s)
    loading_s = _usual(loads, LOAD)
    if stage == FETCH:
        if fetch_left_s is None:
            fetch_left_s = left_s([load.fetch_s for load in loads if load.fetch_s > 0], elapsed_s)
        return _sum((fetch_left_s, loading_s))
    waits = [load.wait_s for load in loads if load.wait_s > 0]
    # One that never waited for memory yet has nothing to tell of it.
    waiting_s = left_s(waits, elapsed_s) if waits else 0.0
    return _sum((waiting_s, _usual(loads, FETCH), loading_s))


def remembered(rows: Iterable[dict[str, Any]]) -> list[PastLoad]:
    """From the row's JSON, oldest first."""
    return [PastLoad(**row) for row in rows]


def with_one_more(rows: Sequence[dict[str, Any]], load: PastLoad) -> list[dict[str, Any]]:
    """The row's JSON with another load; the oldest are forgotten."""
    return [*rows, {name: round(value, 3) for name, value in asdict(load).items()}][-KEPT:]


def _usual(loads: Sequence[PastLoad], stage: str) -> float | None:
    return recent_median([getattr(load, f"{stage}_s") for load in loads])


def _sum(parts: Iterable[float | None]) -> float | None:
    found = list(parts)
    return None if None in found else sum(part for part in found if part is not None)
