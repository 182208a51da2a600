"""Learning the scorer's weights from rated answers, offline. Pure: rows in, weights and an evaluation out.

Each version has a logistic regression of its own: the chance of a good answer by the prompt's traits. It is fitted
by iteratively reweighted least squares with a ridge (le Cessie and van Houwelingen 1992) that pulls towards the
version's own average, so that few rows say little. A rating between 0 and 1 counts as so much of a good answer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from routing.core.hashing import hash64
from routing.core.live import Floats
from routing.core.scorer import TRAITS, logit

RIDGE = 1.0
STEPS = 30
# A version with fewer rated answers keeps its assumed quality.
MIN_ROWS = 20
FOLDS = 5
CLIP = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """One answer that somebody judged: 0 is bad, 1 is good."""

    id: str
    served_id: str
    traits: tuple[float, ...]
    rating: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """On rows that were not learned from: mean log loss of the scorer, and of each version's plain average."""

    rows: int
    versions: int
    loss: float
    mean_loss: float

    @property
    def gain(self) -> float:
        """How much of the average's loss is gone; below 0 the traits say nothing, and it should not be used."""
        return 1.0 - self.loss / self.mean_loss if self.mean_loss > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Weights by served id, in the order of TRAITS, and how well they did."""

    weights: dict[str, tuple[float, ...]]
    evaluation: Evaluation
    left_out: dict[str, int]  # versions with too few rows


def train(rows: Iterable[Rated]) -> Trained:
    """Fit every version that has rows enough; judged by FOLDS-fold cross-validation, split by the rows' ids."""
    by_version: dict[str, list[Rated]] = defaultdict(list)
    for row in rows:
        by_version[row.served_id].append(row)
    weights, left_out = {}, {}
    losses: list[float] = []
    means: list[float] = []
    for served_id, rated in sorted(by_version.items()):
        if len(rated) < MIN_ROWS:
            left_out[served_id] = len(rated)
            continue
        weights[served_id] = tuple(float(value) for value in fit(rated))
        for fold in range(FOLDS):
            held = [row for row in rated if hash64(row.id) % FOLDS == fold]
            rest = [row for row in rated if hash64(row.id) % FOLDS != fold]
            if held and rest:
                fitted = fit(rest)
                average = _average(rest)
                losses += [_loss(_chance(fitted, row.traits), row.rating) for row in held]
                means += [_loss(average, row.rating) for row in held]
    evaluation = Evaluation(
        rows=len(losses),
        versions=len(weights),
        loss=sum(losses) / len(losses) if losses else 0.0,
        mean_loss=sum(means) / len(means) if means else 0.0,
    )
    return Trained(weights=weights, evaluation=evaluation, left_out=left_out)


def fit(rated: Sequence[Rated]) -> Floats:
    """The weights of one version."""
    traits = np.array([row.traits for row in rated], dtype=np.float64)
    ratings = np.array([row.rating for row in rated], dtype=np.float64)
    centre = np.zeros(len(TRAITS))
    centre[0] = logit(_average(rated))
    ridge = np.full(len(TRAITS), RIDGE)
    weights = centre.copy()
    for _ in range(STEPS):
        chance = 1.0 / (1.0 + np.exp(-(traits @ weights)))
        slope = traits.T @ (ratings - chance) - ridge * (weights - centre)
        curve = (traits * (chance * (1.0 - chance))[:, None]).T @ traits + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        weights = weights + step
        if float(np.abs(step).max()) < CLIP:
            break
    found: Floats = weights
    return found


def _average(rated: Sequence[Rated]) -> float:
    """With one good and one bad answer added, so that it is never certain."""
    return (sum(row.rating for row in rated) + 1.0) / (len(rated) + 2.0)


def _chance(weights: Floats, traits: Sequence[float]) -> float:
    return 1.0 / (1.0 + math.exp(-float(weights @ np.asarray(traits))))


def _loss(chance: float, rating: float) -> float:
    chance = min(max(chance, CLIP), 1.0 - CLIP)
    return -(rating * math.log(chance) + (1.0 - rating) * math.log(1.0 - chance))
