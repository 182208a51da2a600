"""Means, proportions and ratios of sums, with a variance that knows that a unit's requests resemble each other.

The functions take sums by cluster (the last axis) and work on any number of experiments at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from routing.core.statistics.sequences import Numbers

# Below this an asymptotic interval is no more than a guess: none is given.
MIN_CLUSTERS = 20
MIN_COUNT = 50
# A measured quantity is never taken to vary by less than this part of its mean.
LEAST_VARIATION = 0.01


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, the variance of it, and how many observations it is made of; NaN and infinity while it is too early.

    ``least`` is what it counts as at least where another is compared with it.
    """

    value: Numbers
    variance: Numbers
    count: Numbers
    least: Numbers


def estimate(top: Numbers, bottom: Numbers, *, proportion: bool = False) -> Estimate:
    """Σtop/Σbottom over clusters, with the delta method's variance of a ratio of clustered sums.

    C/(C-1) Σ(top_c - mean·bottom_c)² / (Σbottom)²: Deng, Knoblich and Lu, "Applying the delta method in metric
    analytics", KDD 2018, equation 3, with clusters in the place of units. A proportion's variance is at least
    that of independent trials with two successes and two failures more (Agresti and Coull 1998), so that no
    error yet does not mean no error ever; and it counts as at least what theirs is without any success, 2/(n+4),
    where another proportion is held against it.
    """
    count = bottom.sum(axis=-1)
    total = top.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = total / count
        clusters = (bottom > 0).sum(axis=-1)
        residuals = top - value[..., None] * bottom
        variance = (residuals**2).sum(axis=-1) * clusters / (clusters - 1) / count**2
        if proportion:
            variance = np.maximum(variance, _least_variance(total, count))
        else:
            variance = np.maximum(variance, (LEAST_VARIATION * value) ** 2 / count)
    early = (clusters < MIN_CLUSTERS) | (count < MIN_COUNT)
    least = 2 / (count + 4) if proportion else np.zeros_like(count)
    return Estimate(value, np.where(early, np.inf, variance), count, least)


def paired_variance(
    control: tuple[Numbers, Numbers],
    treatment: tuple[Numbers, Numbers],
    *,
    proportion: bool = False,
    limit: float = 0.0,
) -> Numbers:
    """The variance of treatment - (1 + limit) · control when both had the same requests: top and bottom by cluster.

    A request's two answers lie in the same cluster, so what they have in common drops out of the difference of
    the clusters' residuals. Infinite while it is too early. It is bounded from below as one arm's is; of two
    proportions at least as many pairs disagree as the difference says.
    """
    count: Numbers = np.zeros(())
    residuals: Numbers = np.zeros(1)
    clusters: Numbers = np.zeros(1)
    means = []
    for weight, (top, bottom) in ((-1.0 - limit, control), (1.0, treatment)):
        total = bottom.sum(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = top.sum(axis=-1) / total
            residuals = residuals + weight * (top - mean[..., None] * bottom) / total[..., None]
        means.append(mean)
        clusters = clusters + (bottom > 0)
        count = count + total
    used = (clusters > 0).sum(axis=-1)
    pairs = count / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (residuals**2).sum(axis=-1) * used / (used - 1)
        if proportion:
            least = _least_variance(np.abs(means[1] - means[0]) * pairs, pairs)
        else:
            least = (LEAST_VARIATION * np.fmax(np.abs(means[0]), np.abs(means[1]))) ** 2 / pairs
        variance = np.maximum(variance, least)
    early = (used < MIN_CLUSTERS) | (count < 2 * MIN_COUNT) | ~np.isfinite(variance)
    return np.where(early, np.inf, variance)


def information(control: Estimate, treatment: Estimate, limit: float = 0.0) -> Numbers:
    """One over the variance of treatment - (1 + limit) · control; 0 while it is too early."""
    with np.errstate(divide="ignore"):
        return np.asarray(1 / ((1 + limit) ** 2 * control.variance + treatment.variance))


def _least_variance(successes: Numbers, trials: Numbers) -> Numbers:
    smoothed = (successes + 2) / (trials + 4)
    return smoothed * (1 - smoothed) / trials
