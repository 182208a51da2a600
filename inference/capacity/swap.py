"""Who goes to sleep for whom, and who is brought up next. Pure: facts in, names and reasons out.

The victim is what costs least to be without: the probability that it is used soon, times the measured time to
bring it back, over the bytes that it frees (the GreedyDual-Size-Frequency idea of web caches: Cherkasova 1998).
Of few candidates the cheapest set that frees enough is found by trying all; of many, the cheapest a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

SOON_S = 60.0
# Every swap costs more than its load: a drain, a turn among the loads, requests that pile up behind it.
SWAP_S = 30.0
# A busy one is drained for another that has waited for this share of what a swap and its way back cost in loads: the
# ski-rental rule bounds the share of time that goes into swapping, and with it everybody's wait.
PATIENCE = 0.75
IDLE_RESIDENCY_SHARE = 0.4
# More likely than not, by as much as one expected use is (1 - 1/e).
LIKELY = 0.63
# One that is busy now but cheaper is waited for so long before an idle one goes, and costs so much more.
HESITATE_S = 6.0
BUSY_S = 2.0
# What it costs to let a request wait grows with this power of its wait.
DELAY_POWER = 3
SHORTEST_S = 0.5
# Loads on a device come one after the other: room for the next one is made so long before its turn.
LEAD_S = 0.5
MAX_TRIED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """One replica that is up. ``rank`` 0 is the most important class."""

    id: str
    bytes: int
    rank: int = 1
    pinned: bool = False
    on_demand: bool = True
    resident_s: float = 0.0
    min_residency_s: float = 0.0
    busy: bool = False
    soon: float = 0.0  # the probability that it is used within SOON_S
    missed: float = 0.0  # the probability that it is used before it could be back
    reload_s: float = 1.0

    @property
    def residency_s(self) -> float:
        """How long it stays at least. An idle one only if it would be asked again before it could be back."""
        if self.busy:
            return self.min_residency_s
        return self.min_residency_s * IDLE_RESIDENCY_SHARE if self.missed > LIKELY else 0.0

    @property
    def cost(self) -> float:
        """Expected seconds of waiting that its absence causes soon."""
        return self.soon * (self.reload_s + SWAP_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What asks for room on one device."""

    bytes: int
    rank: int = 1
    jobs: int = 0
    waited_s: float = 0.0
    max_wait_s: float = 30.0
    load_s: float = 30.0

    def patience_s(self, resident: Resident) -> float:
        """How long it waits for a busy resident to become idle."""
        return min(self.max_wait_s, PATIENCE * (self.load_s + resident.reload_s))

    @property
    def hesitates(self) -> bool:
        """It still waits for a busy one that is cheaper."""
        return self.waited_s < min(HESITATE_S, self.max_wait_s)

    @property
    def urgency(self) -> float:
        """What a second of loading it saves: what all its requests' waiting costs in a second more, over its load.

        The generalized c-mu rule for convex costs of delay (Van Mieghem 1995): the sum over the requests of
        ``k * age ** (k - 1)``, times the rate at which they are served. The first has waited for ``waited_s``, and
        the others are spread evenly over that time: each costs one k-th of it.
        """
        ages = max(self.waited_s, SHORTEST_S) ** (DELAY_POWER - 1)
        others = max(0, self.jobs - 1) / DELAY_POWER
        return DELAY_POWER * ages * (1 + others) / max(self.load_s, SHORTEST_S)

    @property
    def turn(self) -> tuple[int, bool, float]:
        """Sorts who is brought up next: the class; past the bound the longest waiting; else the most urgent."""
        overdue = self.waited_s >= self.max_wait_s
        return self.rank, not overdue, -self.waited_s if overdue else -self.urgency


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
    later = []
    for resident in residents:
        why = spared(resident, wanted)
        if why is None:
            eligible.append(_Candidate(resident, resident.busy, resident.cost))
            continue
        reasons.append(f"{resident.id}: {why}")
        if _is_free_soon(resident, wanted):
            later.append(_Candidate(resident, False, resident.cost + BUSY_S))
    needed = wanted.bytes - free_bytes
    chosen = _cheapest(needed, eligible)
    if chosen is None:
        return Eviction(reasons=tuple(reasons))
    if wanted.hesitates and later:
        better = _cheapest(needed, [*eligible, *later]) or []
        awaited = [one.resident.id for one in better if one in later]
        if awaited:
            waits = (
                f"waits up to {HESITATE_S:.0f} s for {', '.join(awaited)}: cheaper than those that are idle"
            )
            return Eviction(reasons=(*reasons, waits))
    return Eviction(
        victims=tuple(one.resident.id for one in chosen),
        cost=sum(one.resident.cost for one in chosen),
        reasons=tuple(reasons),
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    resident: Resident
    drained: bool
    cost: float

    @property
    def order(self) -> tuple[bool, float, int, str]:
        """The cheapest a byte first."""
        freed = self.resident.bytes
        return self.drained, self.cost / max(1, freed), -freed, self.resident.id


def _is_free_soon(resident: Resident, wanted: Wanted) -> bool:
    """It is up, and only what it does now keeps it from going."""
    up = resident.busy and resident.resident_s > 0
    return up and not resident.pinned and resident.on_demand and resident.rank == wanted.rank


def _cheapest(needed: int, eligible: Sequence[_Candidate]) -> list[_Candidate] | None:
    """The set that frees enough with the fewest that are drained, then at the least cost; None: all are too few."""
    if needed <= 0:
        return []
    if sum(one.resident.bytes for one in eligible) < needed:
        return None
    ranked = sorted(eligible, key=lambda one: one.order)
    if len(ranked) > MAX_TRIED:
        return _cheapest_a_byte(needed, ranked)
    sets = (
        chosen
        for count in range(1, len(ranked) + 1)
        for chosen in combinations(ranked, count)
        if sum(one.resident.bytes for one in chosen) >= needed
    )
    best = min(sets, key=lambda chosen: _price(chosen))
    return list(best)


def _price(chosen: Sequence[_Candidate]) -> tuple[int, float, int]:
    drained = sum(one.drained for one in chosen)
    return drained, sum(one.cost for one in chosen), sum(one.resident.bytes for one in chosen)


def _cheapest_a_byte(needed: int, ranked: Sequence[_Candidate]) -> list[_Candidate]:
    """In their order until enough is freed; then whoever turned out superfluous is spared, the dearest first."""
    chosen: list[_Candidate] = []
    room = 0
    for one in ranked:
        if room >= needed:
            break
        chosen.append(one)
        room += one.resident.bytes
    for one in reversed(list(chosen)):
        if room - one.resident.bytes >= needed:
            chosen.remove(one)
            room -= one.resident.bytes
    return chosen
