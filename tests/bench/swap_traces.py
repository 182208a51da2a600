"""Requests for several models on one device, for the simulator of swapping: seeded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    at: float
    model: int
    service_s: float


def zipf(seed: int, models: int, per_s: float, hours: float) -> list[Arrival]:
    """Independent arrivals, popularity 1/rank."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(models)]
    now, found = 0.0, []
    while now < hours * HOUR_S:
        now += rng.expovariate(per_s)
        model = rng.choices(range(models), weights)[0]
        found.append(Arrival(now, model, rng.lognormvariate(0.7, 0.6)))
    return found


def bursty(seed: int, models: int, per_s: float, hours: float) -> list[Arrival]:
    """Sessions: somebody comes, asks one model many times with short pauses, and goes."""
    rng = random.Random(seed)
    now, found = 0.0, []
    while now < hours * HOUR_S:
        now += rng.expovariate(per_s / 20)
        model = min(models - 1, int(rng.expovariate(0.4)))
        at = now
        for _ in range(1 + int(rng.expovariate(1 / 20))):
            found.append(Arrival(at, model, rng.lognormvariate(0.7, 0.6)))
            at += rng.expovariate(1 / 4)
    return sorted(found, key=lambda arrival: arrival.at)


def alternating(seed: int, models: int, per_s: float, hours: float) -> list[Arrival]:
    """Two models that do not fit together, both asked for all the time."""
    rng = random.Random(seed)
    now, found = 0.0, []
    while now < hours * HOUR_S:
        now += rng.expovariate(per_s)
        found.append(Arrival(now, rng.randrange(2), rng.lognormvariate(0.7, 0.6)))
    return found


TRACES: dict[str, tuple[Callable[[int, int, float, float], list[Arrival]], Sequence[float], float, float]] = {
    # trace, sizes (seconds of loading), capacity, requests a second
    "zipf": (zipf, (4, 8, 3, 6, 10, 5, 12, 4, 7, 9), 20.0, 0.15),
    "bursty": (bursty, (4, 8, 3, 6, 10, 5, 12, 4, 7, 9), 20.0, 0.4),
    "alternating": (alternating, (8, 8), 10.0, 0.5),
}
