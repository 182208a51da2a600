"""A bounded sample of the distinct units with their arms, and an estimate of how many there are.

The units with the lowest ranks are kept (bottom-k: Cohen and Kaplan, PODC 2007). A unit's rank is a hash that knows
nothing of its arm, so the sample's arms are drawn in the configured shares, exactly, however often a unit comes back.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from routing.core.assignment import sample_rank

KEPT = 16_384
_RANKS = 2.0**64

Ranks = npt.NDArray[np.uint64]
Arms = npt.NDArray[np.int64]


class UnitSample:
    """Ranks in order, with the arm of each; units that were added since wait in a dictionary."""

    __slots__ = ("_arms", "_new", "_ranks", "most")

    def __init__(self, ranks: Ranks | None = None, arms: Arms | None = None, *, most: int = KEPT) -> None:
        self._ranks: Ranks = np.empty(0, np.uint64) if ranks is None else ranks
        self._arms: Arms = np.empty(0, np.int64) if arms is None else arms
        self._new: dict[int, int] = {}
        self.most = most

    def add(self, unit: int, arm: int) -> None:
        """See a unit; one that was seen before changes nothing."""
        self._new.setdefault(sample_rank(unit), arm)
        if len(self._new) >= self.most:
            self._sort()

    def merge(self, other: UnitSample) -> None:
        """See all that the other one saw."""
        other._sort()
        self._sort()
        self._take(other._ranks, other._arms)

    def counts(self) -> dict[int, int]:
        """Kept units by arm."""
        self._sort()
        arms, found = np.unique(self._arms, return_counts=True)
        return dict(zip(arms.tolist(), found.tolist(), strict=True))

    def distinct(self) -> int:
        """About how many units there are: (k-1)/the k-th rank (Bar-Yossef et al. 2002); exact while all are kept."""
        self._sort()
        if len(self._ranks) < self.most:
            return len(self._ranks)
        return round((self.most - 1) / (float(self._ranks[-1]) / _RANKS))

    def to_bytes(self) -> bytes:
        """As it is stored."""
        self._sort()
        return zlib.compress(self._ranks.tobytes() + self._arms.tobytes(), 1)

    @classmethod
    def from_bytes(cls, stored: bytes) -> UnitSample:
        """What :meth:`to_bytes` made; empty bytes are an empty sample."""
        if not stored:
            return cls()
        raw = zlib.decompress(stored)
        half = len(raw) // 2
        return cls(np.frombuffer(raw[:half], np.uint64), np.frombuffer(raw[half:], np.int64))

    def _sort(self) -> None:
        if self._new:
            count = len(self._new)
            ranks = np.fromiter(self._new.keys(), np.uint64, count)
            arms = np.fromiter(self._new.values(), np.int64, count)
            self._new = {}
            self._take(ranks, arms)

    def _take(self, ranks: Ranks, arms: Arms) -> None:
        # Of a rank that comes twice the first is kept: what was seen earlier stands in front.
        joined, first = np.unique(np.concatenate((self._ranks, ranks)), return_index=True)
        owners = np.concatenate((self._arms, arms))[first]
        self._ranks, self._arms = joined[: self.most], owners[: self.most]
