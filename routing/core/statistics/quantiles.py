"""Quantiles of latencies: confidence sequences by Howard and Ramdas, for answers that come in clusters.

Howard and Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm identification",
Bernoulli 2022, Theorem 1: at every time t at once, with probability 1 - α, the p-quantile lies between the sample
quantiles p ± f_t(p), f_t(p) = 1.5 √(p(1-p) ℓ(t)) + 0.8 ℓ(t), ℓ(t) = (1.4 ln ln(2.1 t) + ln(10/α)) / t.

That is for independent observations. Here t is the effective number of them, the count over the design effect
(Kish 1965) of "below the quantile or not" between random groups of units.

Latencies are kept in bins, each 5.2% wider than the one before; inside a bin they are taken to be spread evenly
on the logarithm's scale. The functions take them by group (the last two axes: group, bin), and work on any number of
experiments at once.
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


def spread(effective: Numbers, level: float, alpha: float) -> Numbers:
    """f_t(p) of Theorem 1; infinite while it is too early."""
    t = np.maximum(effective, MIN_EFFECTIVE)
    slack = (1.4 * np.log(np.log(2.1 * t)) + math.log(10 / alpha)) / t
    found = 1.5 * np.sqrt(level * (1 - level) * slack) + 0.8 * slack
    return np.where(effective < MIN_EFFECTIVE, np.inf, found)


def quantile(counts: Numbers, level: float | Numbers) -> Numbers:
    """The latency below which this part lies; NaN without any, 0 and infinity beyond the ends."""
    below = np.cumsum(counts, axis=-1)
    total = below[..., -1]
    wanted = np.clip(level, 0, 1) * total
    place = np.minimum((below < wanted[..., None]).sum(axis=-1), counts.shape[-1] - 1)
    inside, until = _at(counts, place), _at(below, place)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(inside > 0, (wanted - until + inside) / inside, 0.0)
    found = LEAST_S * np.exp(_SPAN * (place + part) / BINS)
    found = np.where(np.less_equal(level, 0), 0.0, np.where(np.greater_equal(level, 1), np.inf, found))
    return np.where(total > 0, found, np.nan)


def design_effect(groups: Bins, level: float) -> Numbers:
    """How many times the variance of "below the quantile or not" is that of independent observations; at least 1."""
    until = np.cumsum(groups, axis=-1, dtype=np.float64)
    sizes = until[..., -1]
    below, total = until.sum(axis=-2), sizes.sum(axis=-1)
    used = (sizes > 0).sum(axis=-1)
    # The bin's boundary nearest to the level: a share that is exactly known of each group.
    place = np.minimum((below < level * total[..., None]).sum(axis=-1), groups.shape[-1] - 1)
    off = []
    for cut in (place, np.maximum(place - 1, 0)):
        share = _at(below, cut)
        off.append(np.where((share > 0) & (share < total), np.abs(share - level * total), np.inf))
    cut = np.where(off[0] <= off[1], place, np.maximum(place - 1, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = _at(below, cut) / total
        inside = np.take_along_axis(until, cut[..., None, None], axis=-1)[..., 0]
        residuals = inside - share[..., None] * sizes
        found = (residuals**2).sum(axis=-1) * used / (used - 1) / (total * share * (1 - share))
    known = (used > 1) & np.isfinite(np.minimum(off[0], off[1]))
    return np.where(known, np.maximum(1.0, found), 1.0)


def interval(groups: Bins, level: float, alpha: float) -> tuple[Numbers, Numbers, Numbers]:
    """The sample quantile and its confidence sequence now: value, low, high."""
    counts = groups.sum(axis=-2, dtype=np.float64)
    effective = counts.sum(axis=-1) / design_effect(groups, level)
    off = spread(effective, level, alpha)
    return quantile(counts, level), quantile(counts, level - off), quantile(counts, level + off)


def difference(
    control: Bins, treatment: Bins, level: float, alpha: float, limit: float = 0.0
) -> tuple[Numbers, Numbers, Numbers]:
    """Treatment minus control: each arm's sequence at half of alpha (Bonferroni).

    Against a ``limit``, how far the control's ends are from its value counts (1 + limit) times.
    """
    base, base_low, base_high = interval(control, level, alpha / 2)
    value, low, high = interval(treatment, level, alpha / 2)
    above, below = (1 + limit) * (base_high - base), (1 + limit) * (base - base_low)
    return value - base, low - base - above, high - base + below


def _at(values: Numbers, place: npt.NDArray[np.intp]) -> Numbers:
    return np.take_along_axis(values, place[..., None], axis=-1)[..., 0]
