"""How many observations an effect needs, and how many days that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from routing.core.statistics.sequences import best_rho

POWER = 0.8
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Needed:
    """Observations of both arms together: by the textbook's one look, and with looks at any time."""

    fixed: int
    sequential: int


def textbook_information(effect: float, alpha: float, power: float = POWER) -> float:
    """((z_{1-α/2} + z_power) / effect)²: 7.85 / effect² for 5% and 80%."""
    return ((_NORMAL.inv_cdf(1 - alpha / 2) + _NORMAL.inv_cdf(power)) / effect) ** 2


def sequential_information(effect: float, alpha: float, power: float = POWER) -> float:
    """Information at which the mixture's boundary is crossed with this power, if it was tuned for that much."""
    rho = best_rho(1.0, alpha)
    # The boundary in standard deviations where it is tightest; it does not depend on the scale.
    bound = math.sqrt((1 + rho) * math.log((1 + rho) / (alpha**2 * rho)))
    return ((bound + _NORMAL.inv_cdf(power)) / effect) ** 2


def observations(
    effect: float,
    variance: float,
    alpha: float,
    *,
    shares: tuple[float, float] = (0.5, 0.5),
    power: float = POWER,
) -> Needed:
    """For an absolute effect on a mean whose observations have this variance (clustering included)."""
    control, treatment = (share / sum(shares) for share in shares)
    per_observation = 1 / (variance / control + variance / treatment)
    return Needed(
        fixed=math.ceil(textbook_information(effect, alpha, power) / per_observation),
        sequential=math.ceil(sequential_information(effect, alpha, power) / per_observation),
    )
