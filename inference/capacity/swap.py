"""Who goes to sleep for whom. Pure: facts in, names and reasons out.

The victim is what costs least to be without: the probability that it is used soon, times the measured time to
bring it back, over the bytes that it frees (the GreedyDual-Size-Frequency idea of web caches: Cherkasova 1998).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SOON_S = 60.0
# A busy one is drained for another that has waited for half of what a swap and its way back cost in loads: the
# ski-rental rule bounds the share of time that goes into swapping, and with it everybody's wait.
PATIENCE = 0.5
IDLE_RESIDENCY_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """One replica that is up. ``rank`` 0 is the most important class; rates are per second."""

    id: str
    bytes: int
    rank: int = 1
    pinned: bool = False
    on_demand: bool = True
    resident_s: float = 0.0
    min_residency_s: float = 0.0
    busy: bool = False
    uses_per_s: float = 0.0
    reload_s: float = 1.0

    @property
    def soon(self) -> float:
        """The probability that it is used within SOON_S, if uses come independently (Poisson)."""
        return 1.0 - math.exp(-self.uses_per_s * SOON_S)

    @property
    def residency_s(self) -> float:
        """How long it stays at least. An idle one only if it would be asked again before it could be back."""
        if self.busy:
            return self.min_residency_s
        again = self.uses_per_s * self.reload_s > 1.0
        return self.min_residency_s * IDLE_RESIDENCY_SHARE if again else 0.0

    @property
    def cost(self) -> float:
        """Expected seconds of waiting that its absence causes soon, a byte."""
        return self.soon * self.reload_s / max(1, self.bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What asks for room on one device."""

    bytes: int
    rank: int = 1
    waited_s: float = 0.0
    max_wait_s: float = 30.0
    load_s: float = 30.0

    def patience_s(self, resident: Resident) -> float:
        """How long it waits for a busy resident to become idle."""
        return min(self.max_wait_s, PATIENCE * (self.load_s + resident.reload_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """Who goes; empty: nobody can, and ``reasons`` says of each why not."""

    victims: tuple[str, ...] = ()
    cost: float = 0.0
    reasons: tuple[str, ...] = ()


def spared(resident: Resident, wanted: Wanted) -> str | None:
    """Why a resident is not put to sleep for this, or None."""
    if resident.pinned:
        return "pinned"
    if not resident.on_demand:
        return "always up"
    if resident.rank < wanted.rank:
        return "of a higher class"
    if resident.resident_s < resident.residency_s:
        return f"up for {resident.resident_s:.0f} s of at least {resident.residency_s:.0f} s"
    # A stream is never cut for what can still wait; past the bound it is drained, not cut.
    patience_s = wanted.patience_s(resident)
    if resident.busy and resident.rank == wanted.rank and wanted.waited_s < patience_s:
        return f"busy, and drained only after {patience_s:.0f} s of waiting"
    return None


def choose_victims(wanted: Wanted, residents: Sequence[Resident], free_bytes: int) -> Eviction:
    """The cheapest residents whose sleep makes room; idle ones before busy ones."""
    reasons = []
    eligible = []
    for resident in residents:
        why = spared(resident, wanted)
        if why is None:
            eligible.append(resident)
        else:
            reasons.append(f"{resident.id}: {why}")
    eligible.sort(key=lambda one: (one.busy, one.cost, -one.bytes, one.id))
    chosen = _cheapest(wanted.bytes - free_bytes, eligible)
    if chosen is None:
        return Eviction(reasons=tuple(reasons))
    cost = sum(one.cost * one.bytes for one in chosen)
    return Eviction(victims=tuple(one.id for one in chosen), cost=cost, reasons=tuple(reasons))


def _cheapest(needed: int, eligible: Sequence[Resident]) -> list[Resident] | None:
    """The cheapest a byte until enough is freed; then whoever turned out superfluous is spared, the dearest first."""
    if needed <= 0:
        return []
    if sum(one.bytes for one in eligible) < needed:
        return None
    chosen: list[Resident] = []
    room = 0
    for one in eligible:
        if room >= needed:
            break
        chosen.append(one)
        room += one.bytes
    for one in sorted(chosen, key=lambda one: (one.busy, one.cost), reverse=True):
        if room - one.bytes >= needed:
            chosen.remove(one)
            room -= one.bytes
    return chosen


class UseRate:
    """Uses a second of one deployment, decaying over about two minutes."""

    __slots__ = ("_at", "_rate")
    MEMORY_S = 120.0

    def __init__(self, now: float) -> None:
        self._at = now
        self._rate = 0.0

    def observe(self, per_s: float, now: float) -> None:
        """What is seen at this moment; the longer since the last look, the more it counts."""
        keep = math.exp(-max(0.0, now - self._at) / self.MEMORY_S)
        self._rate = self._rate * keep + per_s * (1.0 - keep)
        self._at = now

    def at(self, now: float) -> float:
        return self._rate * math.exp(-max(0.0, now - self._at) / self.MEMORY_S)
