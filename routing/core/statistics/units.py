"""A bounded sample of the distinct units with their arms, and an estimate of how many there are.

The units with the lowest ranks are kept (bottom-k: Cohen and Kaplan, PODC 2007). A unit's rank is a hash that knows
nothing of its arm, so the sample's arms are drawn in the configured shares, exactly, however often a unit comes back.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from routing.core.assignment import sample_rank

KEPT = 16_384
_RANKS = 2.0**64


class UnitSample:
    """The arm of each kept unit, by rank."""

    __slots__ = ("_arms", "_full_at", "most")

    def __init__(self, arms: Mapping[int, int] | None = None, *, most: int = KEPT) -> None:
        self._arms = dict(arms or {})
        self.most = most
        self._full_at = max(self._arms) if len(self._arms) >= most else _RANKS

    def add(self, unit: int, arm: int) -> None:
        """See a unit; one that was seen before changes nothing."""
        rank = sample_rank(unit)
        if rank >= self._full_at or rank in self._arms:
            return
        self._arms[rank] = arm
        # Twice as many for a while: sorting at every unit would cost more than it keeps.
        if len(self._arms) >= 2 * self.most:
            self._trim()

    def merge(self, other: UnitSample) -> None:
        """See all that the other one saw."""
        self._arms = {**other._arms, **self._arms}
        self._trim()

    def counts(self) -> dict[int, int]:
        """Kept units by arm."""
        self._trim()
        found: dict[int, int] = {}
        for arm in self._arms.values():
            found[arm] = found.get(arm, 0) + 1
        return found

    def distinct(self) -> int:
        """About how many units there are: (k-1)/the k-th rank (Bar-Yossef et al. 2002); exact while all are kept."""
        self._trim()
        if len(self._arms) < self.most:
            return len(self._arms)
        return round((self.most - 1) / (max(self._arms) / _RANKS))

    def to_bytes(self) -> bytes:
        """As it is stored."""
        self._trim()
        ranks = np.fromiter(self._arms.keys(), np.uint64, len(self._arms))
        arms = np.fromiter(self._arms.values(), np.int64, len(self._arms))
        return zlib.compress(ranks.tobytes() + arms.tobytes(), 1)

    @classmethod
    def from_bytes(cls, stored: bytes) -> UnitSample:
        """What :meth:`to_bytes` made; empty bytes are an empty sample."""
        if not stored:
            return cls()
        raw = zlib.decompress(stored)
        half = len(raw) // 2
        ranks = np.frombuffer(raw[:half], np.uint64).tolist()
        return cls(dict(zip(ranks, np.frombuffer(raw[half:], np.int64).tolist(), strict=True)))

    def _trim(self) -> None:
        if len(self._arms) > self.most:
            self._arms = {rank: self._arms[rank] for rank in sorted(self._arms)[: self.most]}
        if len(self._arms) >= self.most:
            self._full_at = max(self._arms)
