"""A boundary that a difference without an effect crosses with probability alpha at most, over all looks together.

Robbins's normal mixture: Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence
sequences", Annals of Statistics 2021, Proposition 5 (two-sided normal mixture). With an estimated variance it is an
asymptotic confidence sequence: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory
and asymptotic confidence sequences", Annals of Statistics 2024, Theorem 2.2.

Its clock is information, one over the variance of the estimate: estimate × information moves like a Brownian motion
(Scharfstein, Tsiatis and Robins, JASA 1997). Answers of one unit resemble each other, so its increments are correlated
positively if at all, and by Slepian's lemma such a process crosses less often than the Brownian motion does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


def best_rho(information: float | Numbers, alpha: float) -> Any:
    """The mixture's parameter that makes the boundary tightest about that much information.

    The closed form of the authors' own software (confseq, two-sided normal mixture).
    """
    odds = 2 * math.log(1 / alpha)
    return information / (odds + math.log(1 + odds))


def width(information: Numbers, alpha: float, rho: float | Numbers) -> Numbers:
    """Half the width of the interval for an estimate of that much information: √((I+ρ) ln((I+ρ)/(α²ρ))) / I."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.sqrt((information + rho) * np.log((information + rho) / (alpha**2 * rho))) / information
    return np.where(information > 0, found, np.inf)


def evidence(estimate: Numbers, information: Numbers, rho: float | Numbers) -> Numbers:
    """The logarithm of the mixture's e-value against "no difference"; crossing is ``>= log(1/alpha)``."""
    score = estimate * information
    return 0.5 * (np.log(rho / (information + rho)) + score**2 / (information + rho))


def always_valid_p(estimate: Numbers, information: Numbers, rho: float | Numbers) -> Numbers:
    """A p-value that stays valid under any stopping rule: one over the e-value."""
    return np.minimum(1.0, np.exp(-evidence(estimate, information, rho)))
