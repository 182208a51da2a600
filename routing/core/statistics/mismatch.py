"""Sample-ratio mismatch: whether the arms have the distinct units that their shares promise.

Two answers. Pearson's chi-square with its p-value, as everybody knows it; it is meant for one look. And an e-value that
may be looked at all the time and that stops an experiment: the Dirichlet-multinomial Bayes factor of Lindon and Malek,
"Anytime-valid inference for multinomial count data", NeurIPS 2022, equation 5, with the prior k·θ₀.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.001  # of ever stopping a sound experiment for its ratio
CONCENTRATION = 100.0  # k: how close to the promised shares a mismatch is expected to be


@dataclass(frozen=True, slots=True)
class Mismatch:
    """``broken`` by the e-value alone; it never takes back."""

    chi_square: float
    p: float
    log_evidence: float
    broken: bool


def mismatch(units: Sequence[int], shares: Sequence[float]) -> Mismatch:
    """Compare distinct units by arm with the shares (which need not sum to one)."""
    total, all_shares = sum(units), sum(shares)
    expected = [share / all_shares for share in shares]
    if not total or len(units) < 2:
        return Mismatch(0.0, 1.0, 0.0, broken=False)
    chi_square = sum(
        (n - total * part) ** 2 / (total * part) for n, part in zip(units, expected, strict=True)
    )
    found = log_bayes_factor(units, expected)
    p = chi_square_tail(chi_square, len(units) - 1)
    return Mismatch(chi_square, p, found, broken=found >= math.log(1 / ALPHA))


def log_bayes_factor(units: Sequence[int], expected: Sequence[float]) -> float:
    """ln of (the counts' likelihood under the mixture) over (that under the promised shares)."""
    prior = [CONCENTRATION * part for part in expected]
    mixed = math.lgamma(CONCENTRATION) - math.lgamma(CONCENTRATION + sum(units))
    for count, weight in zip(units, prior, strict=True):
        mixed += math.lgamma(weight + count) - math.lgamma(weight)
    return mixed - sum(n * math.log(part) for n, part in zip(units, expected, strict=True) if n)


def chi_square_tail(value: float, freedom: int) -> float:
    """P(χ² ≥ value) for whole degrees of freedom: the finite sums of Abramowitz and Stegun 26.4.4 and 26.4.5."""
    half = value / 2
    if half > 700:
        return 0.0
    if freedom % 2:
        found = math.erfc(math.sqrt(half))
        term = math.sqrt(half / math.pi) * 2 * math.exp(-half)
        for step in range(1, freedom, 2):
            found += term
            term *= value / (step + 2)
        return min(1.0, found)
    term = math.exp(-half)
    found = term
    for step in range(1, freedom // 2):
        term *= half / step
        found += term
    return min(1.0, found)
