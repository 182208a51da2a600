"""What is kept of one arm: sums by cluster of units and latencies by bin. Bounded, and two of them add up.

A unit always falls into the same of 1,024 clusters, so that whatever a unit does stays in one term of the variance.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from routing.core.statistics import metrics as m
from routing.core.statistics.quantiles import BINS, GROUPS, bin_of, bins_of
from routing.core.statistics.sequences import Numbers

CLUSTERS = 1024
Clusters = npt.NDArray[np.intp]
_LEVEL = 1  # of compression: most clusters and bins are zero


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request of a unit, as far as an experiment is concerned; None is "not measured"."""

    unit: int
    failed: bool = False
    succeeded: bool = False
    cost: float = 0.0
    output_tokens: int = 0
    refused: bool = False
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


class Totals:
    """``sums`` is (columns, clusters), ``bins`` (latency, group of units, bin)."""

    __slots__ = ("bins", "sums")

    def __init__(self, sums: Numbers | None = None, bins: npt.NDArray[np.uint32] | None = None) -> None:
        self.sums = np.zeros((m.COLUMNS, CLUSTERS)) if sums is None else sums
        self.bins = np.zeros((m.HISTOGRAMS, GROUPS, BINS), np.uint32) if bins is None else bins

    def add(self, outcome: Outcome) -> None:
        """Count one request."""
        cluster = outcome.unit % CLUSTERS
        sums = self.sums[:, cluster]
        sums[m.REQUESTS] += 1
        sums[m.ERRORS] += outcome.failed
        sums[m.COST] += outcome.cost
        group = cluster % GROUPS
        if outcome.ttft_s is not None:
            sums[m.TTFT_N] += 1
            sums[m.TTFT_S] += outcome.ttft_s
            self.bins[m.TTFT, group, bin_of(outcome.ttft_s)] += 1
        if outcome.tpot_s is not None:
            sums[m.TPOT_N] += 1
            sums[m.TPOT_S] += outcome.tpot_s
            self.bins[m.TPOT, group, bin_of(outcome.tpot_s)] += 1
        if outcome.succeeded:
            sums[m.SUCCESSES] += 1
            sums[m.OUTPUT_TOKENS] += outcome.output_tokens
            sums[m.REFUSALS] += outcome.refused
            if outcome.e2e_s is not None:
                sums[m.E2E_S] += outcome.e2e_s
                self.bins[m.E2E, group, bin_of(outcome.e2e_s)] += 1

    def add_all(self, outcomes: Sequence[Outcome]) -> None:
        """The same as :meth:`add` of each, column by column."""
        clusters = np.array([one.unit % CLUSTERS for one in outcomes], np.intp)

        def total(column: int, of: Clusters, amounts: Numbers | None = None) -> None:
            self.sums[column] += np.bincount(of, amounts, CLUSTERS)

        def latency(kind: int, column: int, seconds: Numbers) -> Clusters:
            measured = ~np.isnan(seconds)
            of, seconds = clusters[measured], seconds[measured]
            np.add.at(self.bins[kind], (of % GROUPS, bins_of(seconds)), 1)
            total(column, of, seconds)
            return of

        total(m.REQUESTS, clusters)
        total(m.ERRORS, clusters, np.array([one.failed for one in outcomes], np.float64))
        total(m.COST, clusters, np.array([one.cost for one in outcomes]))
        # None becomes NaN.
        total(m.TTFT_N, latency(m.TTFT, m.TTFT_S, np.array([one.ttft_s for one in outcomes], np.float64)))
        total(m.TPOT_N, latency(m.TPOT, m.TPOT_S, np.array([one.tpot_s for one in outcomes], np.float64)))
        good = np.array([one.succeeded for one in outcomes], np.bool_)
        of = clusters[good]
        total(m.SUCCESSES, of)
        total(m.OUTPUT_TOKENS, of, np.array([one.output_tokens for one in outcomes], np.float64)[good])
        total(m.REFUSALS, of, np.array([one.refused for one in outcomes], np.float64)[good])
        e2e_s = np.array([one.e2e_s for one in outcomes], np.float64)
        latency(m.E2E, m.E2E_S, np.where(good, e2e_s, np.nan))

    def add_feedback(self, unit: int, *, value: float, before: float | None, rating: bool) -> None:
        """Count a rating or score; ``before`` is what the same request was given earlier, which it replaces."""
        count, total = (m.RATINGS, m.RATING) if rating else (m.SCORES, m.SCORE)
        cluster = unit % CLUSTERS
        if before is None:
            self.sums[count, cluster] += 1
        self.sums[total, cluster] += value - (before or 0.0)

    def __iadd__(self, other: Totals) -> Totals:
        self.sums += other.sums
        self.bins += other.bins
        return self

    @property
    def requests(self) -> int:
        """How many requests were counted."""
        return int(self.sums[m.REQUESTS].sum())

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return zlib.compress(self.sums.tobytes() + self.bins.tobytes(), _LEVEL)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Totals:
        """What :meth:`to_bytes` made; empty bytes are empty totals."""
        if not stored:
            return cls()
        raw = zlib.decompress(stored)
        split = m.COLUMNS * CLUSTERS * 8
        sums = np.frombuffer(raw[:split], np.float64).reshape(m.COLUMNS, CLUSTERS).copy()
        bins = np.frombuffer(raw[split:], np.uint32).reshape(m.HISTOGRAMS, GROUPS, BINS).copy()
        return cls(sums, bins)
