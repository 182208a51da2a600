"""Quantiles of latencies: confidence sequences by Howard and Ramdas, for answers that come in clusters.

Howard and Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm identification",
Bernoulli 2022, Theorem 1: at every time t at once, with probability 1 - α, the p-quantile lies between the sample
quantiles p ± f_t(p), f_t(p) = 1.5 √(p(1-p) ℓ(t)) + 0.8 ℓ(t), ℓ(t) = (1.4 ln ln(2.1 t) + ln(10/α)) / t.

That is for independent observations. Here t is the effective number of them, the count over the design effect
(Kish 1965) of "below the quantile or not" between random groups of units.

Latencies are kept in bins, each 5.2% wider than the one before; inside a bin they are taken to be spread evenly
on the logarithm's scale.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from routing.core.statistics.sequences import Numbers

BINS = 320
LEAST_S, MOST_S = 50e-6, 600.0
GROUPS = 64
MIN_EFFECTIVE = 30.0
_SPAN = math.log(MOST_S / LEAST_S)

Bins = npt.NDArray[np.uint32]


def bin_of(seconds: float) -> int:
    """The bin of a latency; the first and the last take what lies outside."""
    if seconds <= LEAST_S:
        return 0
    return min(BINS - 1, int(math.log(seconds / LEAST_S) / _SPAN * BINS))


def bins_of(seconds: Numbers) -> npt.NDArray[np.intp]:
    """The same of many."""
    places = np.log(np.maximum(seconds, LEAST_S) / LEAST_S) / _SPAN * BINS
    return np.minimum(BINS - 1, places).astype(np.intp)


def seconds_at(place: float) -> float:
    """The latency at a place on the bins' scale (2.5: the middle of the third)."""
    return LEAST_S * math.exp(_SPAN * place / BINS)


def spread(effective: float, level: float, alpha: float) -> float:
    """f_t(p) of Theorem 1."""
    if effective < MIN_EFFECTIVE:
        return math.inf
    slack = (1.4 * math.log(math.log(2.1 * effective)) + math.log(10 / alpha)) / effective
    return 1.5 * math.sqrt(level * (1 - level) * slack) + 0.8 * slack


def quantile(counts: Numbers, level: float) -> float:
    """The latency below which this part lies; NaN without any, 0 and infinity beyond the ends."""
    total = float(counts.sum())
    if not total:
        return math.nan
    if level <= 0:
        return 0.0
    if level >= 1:
        return math.inf
    below = np.cumsum(counts)
    place = int(np.searchsorted(below, level * total))
    inside = counts[place]
    before = below[place] - inside
    return seconds_at(place + (level * total - before) / inside if inside else place)


def design_effect(groups: Bins, level: float) -> float:
    """How many times the variance of "below the quantile or not" is that of independent observations; at least 1."""
    sizes = groups.sum(axis=1, dtype=np.float64)
    total = sizes.sum()
    used = int((sizes > 0).sum())
    if used < 2:
        return 1.0
    merged = groups.sum(axis=0, dtype=np.float64)
    below = np.cumsum(merged)
    # The bin's boundary nearest to the level: a share that is exactly known of each group.
    place = int(np.searchsorted(below, level * total))
    cuts = [one for one in (place, place - 1) if one >= 0 and 0 < below[one] < total]
    if not cuts:
        return 1.0
    cut = min(cuts, key=lambda one: abs(below[one] - level * total))
    share = below[cut] / total
    residuals = groups[:, : cut + 1].sum(axis=1, dtype=np.float64) - share * sizes
    return max(1.0, float((residuals**2).sum() * used / (used - 1) / (total * share * (1 - share))))


def interval(groups: Bins, level: float, alpha: float) -> tuple[float, float, float]:
    """The sample quantile and its confidence sequence now: value, low, high."""
    counts = groups.sum(axis=0, dtype=np.float64)
    effective = float(counts.sum()) / design_effect(groups, level)
    off = spread(effective, level, alpha)
    return quantile(counts, level), quantile(counts, level - off), quantile(counts, level + off)


def difference(
    control: Bins, treatment: Bins, level: float, alpha: float, limit: float = 0.0
) -> tuple[float, float, float]:
    """Treatment minus control: each arm's sequence at half of alpha (Bonferroni).

    Against a ``limit``, how far the control's ends are from its value counts (1 + limit) times.
    """
    base, base_low, base_high = interval(control, level, alpha / 2)
    value, low, high = interval(treatment, level, alpha / 2)
    above, below = (1 + limit) * (base_high - base), (1 + limit) * (base - base_low)
    return value - base, low - base - above, high - base + below
