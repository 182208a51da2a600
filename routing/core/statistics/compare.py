"""One metric of one arm against the control's: the difference, where it may lie, and what that means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from routing.core.statistics.means import Estimate, estimate, information, paired_variance
from routing.core.statistics.metrics import METRICS, Metric
from routing.core.statistics.planning import sequential_information
from routing.core.statistics.quantiles import difference, interval
from routing.core.statistics.sequences import Numbers, always_valid_p, best_rho, width
from routing.core.statistics.totals import Totals

_NORMAL = NormalDist()
# A mean of less than this part of the treatment's counts as that part: "infinitely worse" has no interval.
LEAST_PART = 0.001
# The boundary is tuned for a change of a control that is at least this part of the treatment's value. One that was
# tuned for a small part of nothing would take for ever to see even the largest difference.
TUNED_PART = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Values in the metric's unit; None is "too early to say". ``scale`` is what ``relative`` is in parts of."""

    metric: str
    control: float | None
    treatment: float | None
    difference: float | None
    low: float | None
    high: float | None
    count: int
    p: float | None = None
    chance_better: float | None = None
    information: float = 0.0
    needed: float | None = None  # information at which the smallest effect is found, mostly
    scale: float | None = None  # see scale_of()

    @property
    def relative(self) -> tuple[float, float, float] | None:
        """Difference, low and high as parts of the control's size; above 0 is more, whatever the control's sign."""
        if self.low is None or self.high is None or self.difference is None or self.scale is None:
            return None
        if not self.scale:
            return 0.0, 0.0, 0.0
        return self.difference / self.scale, self.low / self.scale, self.high / self.scale


def compare(
    metric: Metric,
    control: Totals,
    treatment: Totals,
    *,
    alpha: float,
    effect: float,
    paired: bool = False,
    limit: float = 0.0,
) -> Comparison:
    """``effect`` is the smallest relative effect of interest; the sequence is tightest where it could be seen.

    ``paired``: both arms had the same requests. Quantiles are compared as if they had not, which is wider.
    ``limit``: how much worse is held against ``relative``. The control's own uncertainty counts (1 + limit) times then,
    as it does in treatment - (1 + limit) · control, so that whether the interval lies beyond the limit errs with alpha
    wherever the truth is on the near side of it (the sign test of Fieller 1954). Where worse is nearer to 0, it counts
    once: less would do.
    """
    if metric.histogram is not None:
        return _quantile(metric, control, treatment, alpha, limit)
    base, new = (
        estimate(arm.sums[metric.top], arm.sums[metric.bottom], proportion=metric.proportion)
        for arm in (control, treatment)
    )
    limit = _uncertain_by(metric, base, limit)
    variance = None
    if paired:
        sums = [(arm.sums[metric.top], arm.sums[metric.bottom]) for arm in (control, treatment)]
        variance = paired_variance(sums[0], sums[1], proportion=metric.proportion, limit=limit)
    found = difference_of(base, new, alpha=alpha, effect=effect, variance=variance, limit=limit)
    delta, known = float(found.delta), float(found.information)
    if not found.half:
        return Comparison(
            metric=metric.name,
            control=0.0,
            treatment=0.0,
            difference=0.0,
            low=0.0,
            high=0.0,
            count=int(base.count + new.count),
            scale=0.0,
        )
    if not math.isfinite(found.half):
        return Comparison(
            metric=metric.name,
            control=_number(base.value),
            treatment=_number(new.value),
            difference=_number(delta),
            low=None,
            high=None,
            count=int(base.count + new.count),
        )
    return Comparison(
        metric=metric.name,
        control=_number(base.value),
        treatment=_number(new.value),
        difference=delta,
        low=delta - float(found.half),
        high=delta + float(found.half),
        count=int(base.count + new.count),
        p=float(always_valid_p(found.delta, found.information, found.rho)),
        chance_better=_chance(metric, delta, known, float(found.rho)),
        information=known,
        needed=float(found.needed),
        scale=float(scale_of(base, new)),
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """Treatment minus control with half the width of its sequence, for any number of experiments at once."""

    delta: Numbers
    half: Numbers  # infinite while it is too early, 0 where both means are exactly 0
    information: Numbers
    rho: Numbers
    needed: Numbers


def difference_of(
    base: Estimate,
    new: Estimate,
    *,
    alpha: float,
    effect: float,
    variance: Numbers | None = None,
    limit: float = 0.0,
) -> Difference:
    """``effect`` is relative: the boundary is tuned for the information that a change of that size needs.

    ``limit`` as in :func:`compare`; a ``variance`` that is given has it in it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        known = information(base, new, limit) if variance is None else 1 / variance
        absolute = effect * np.fmax(scale_of(base, new), TUNED_PART * np.abs(new.value))
        needed = sequential_information(1.0, alpha) / absolute**2
        rho = best_rho(needed, alpha)
        half = width(known, alpha, rho)
    half = np.where((known > 0) & (absolute > 0), half, np.inf)
    half = np.where((known > 0) & (absolute == 0), 0.0, half)
    return Difference(new.value - base.value, half, known, rho, needed)


def scale_of(base: Estimate, new: Estimate) -> Numbers:
    """What relative differences are parts of: the control's size, without its sign, and never nothing.

    At least ``base.least``, and LEAST_PART of the treatment's; 0 only where both means are exactly 0.
    """
    return np.fmax(np.fmax(np.abs(base.value), base.least), LEAST_PART * np.abs(new.value))


def arm_interval(
    metric: Metric, arm: Totals, *, alpha: float
) -> tuple[float | None, float | None, float | None]:
    """One arm's value with its own always-valid interval: for the picture."""
    if metric.histogram is not None:
        value, low, high = interval(arm.bins[metric.histogram], metric.level, alpha)
        return _number(value), _number(low), _number(high)
    found: Estimate = estimate(arm.sums[metric.top], arm.sums[metric.bottom], proportion=metric.proportion)
    if not np.isfinite(found.variance) or not np.isfinite(found.value):
        return _number(found.value), None, None
    known = 1 / found.variance
    half = float(width(known, alpha, best_rho(known, alpha)))
    return float(found.value), float(found.value) - half, float(found.value) + half


def harm(metric: Metric, comparison: Comparison) -> tuple[float, float, float] | None:
    """The relative difference turned so that more is worse: value, low, high; None while nothing can be said.

    Of a metric where neither way is better, any change is harm: the larger of the two directions counts.
    """
    found = comparison.relative
    if found is None:
        return None
    value, low, high = found
    if metric.lower_is_better is None:
        least = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
        return abs(value), least, max(abs(low), abs(high))
    return (value, low, high) if metric.lower_is_better else (-value, -high, -low)


def bonferroni(alpha: float, comparisons: int) -> float:
    """The level of each of several comparisons, so that all of them together err with alpha at most."""
    return alpha / max(1, comparisons)


def names(wanted: Sequence[str]) -> list[Metric]:
    """The metrics of these names."""
    return [METRICS[name] for name in wanted]


def _uncertain_by(metric: Metric, base: Estimate, limit: float) -> float:
    """The limit where it is farther from 0 than the control is, else 0."""
    if metric.lower_is_better is None:
        return limit
    return limit if metric.lower_is_better == (float(base.value) >= 0) else 0.0


def _quantile(metric: Metric, control: Totals, treatment: Totals, alpha: float, limit: float) -> Comparison:
    assert metric.histogram is not None, "compare() sends only quantiles here"
    groups = [arm.bins[metric.histogram] for arm in (control, treatment)]
    values = [interval(one, metric.level, alpha)[0] for one in groups]
    delta, low, high = difference(groups[0], groups[1], metric.level, alpha, limit)
    known = bool(np.isfinite(low) and np.isfinite(high))
    return Comparison(
        metric=metric.name,
        control=_number(values[0]),
        treatment=_number(values[1]),
        difference=_number(delta),
        low=float(low) if known else None,
        high=float(high) if known else None,
        count=int(sum(one.sum() for one in groups)),
        scale=_number(values[0]),
    )


def _chance(metric: Metric, delta: float, known: float, rho: float) -> float | None:
    """P(better) when the effect was drawn from the mixture that the boundary uses: N(0, 1/rho)."""
    if metric.lower_is_better is None:
        return None
    chance_up = _NORMAL.cdf(delta * known / math.sqrt(known + rho))
    return 1 - chance_up if metric.lower_is_better else chance_up


def _number(value: float | np.floating | np.ndarray) -> float | None:
    found = float(value)
    return found if math.isfinite(found) else None
