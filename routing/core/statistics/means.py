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
    """A mean, the variance of it, and how many observations it is made of; NaN and infinity while it is too early."""

    value: Numbers
    variance: Numbers
    count: Numbers


def estimate(top: Numbers, bottom: Numbers, *, proportion: bool = False) -> Estimate:
    """Σtop/Σbottom over clusters, with the delta method's variance of a ratio of clustered sums.

    C/(C-1) Σ(top_c - mean·bottom_c)² / (Σbottom)²: Deng, Knoblich and Lu, "Applying the delta method in metric
    analytics", KDD 2018, equation 3, with clusters in the place of units. A proportion's variance is at least
    that of independent trials with two successes and two failures more (Agresti and Coull 1998), so that no
    error yet does not mean no error ever.
    """
    count = bottom.sum(axis=-1)
    total = top.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = total / count
        clusters = (bottom > 0).sum(axis=-1)
        residuals = top - value[..., None] * bottom
        variance = (residuals**2).sum(axis=-1) * clusters / (clusters - 1) / count**2
        if proportion:
            smoothed = (total + 2) / (count + 4)
            least = smoothed * (1 - smoothed) / count
        else:
            least = (LEAST_VARIATION * value) ** 2 / count
        variance = np.maximum(variance, least)
    early = (clusters < MIN_CLUSTERS) | (count < MIN_COUNT)
    return Estimate(value, np.where(early, np.inf, variance), count)


def paired_variance(control: tuple[Numbers, Numbers], treatment: tuple[Numbers, Numbers]) -> Numbers:
    """The variance of the difference when both arms had the same requests: top and bottom of each, by cluster.

    A request's two answers lie in the same cluster, so what they have in common drops out of the difference of
    the clusters' residuals. Infinite while it is too early.
    """
    count = 0.0
    residuals: Numbers = np.zeros(1)
    clusters: Numbers = np.zeros(1)
    for sign, (top, bottom) in ((-1.0, control), (1.0, treatment)):
        total = bottom.sum(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = (top.sum(axis=-1) / total)[..., None]
            residuals = residuals + sign * (top - mean * bottom) / total[..., None]
        clusters = clusters + (bottom > 0)
        count = count + total
    used = (clusters > 0).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (residuals**2).sum(axis=-1) * used / (used - 1)
    early = (used < MIN_CLUSTERS) | (count < 2 * MIN_COUNT) | ~np.isfinite(variance) | (variance <= 0)
    return np.where(early, np.inf, variance)


def information(control: Estimate, treatment: Estimate) -> Numbers:
    """One over the variance of the difference; 0 while it is too early."""
    return 1 / (control.variance + treatment.variance)
