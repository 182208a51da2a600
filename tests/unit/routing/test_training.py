"""The scorer learns what is there to learn, and says so when there is nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from routing.core.scorer import TRAITS
from routing.core.training import MIN_ROWS, Rated, fit, train

CODE = TRAITS.index("code")


def rows(count: int, chance_of: object, *, served_id: str = "m@1", seed: int = 1) -> list[Rated]:
    """Answers to prompts that are code or not, good with the chance that is given for each."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        code = rng.random() < 0.5
        traits = [1.0, rng.random(), 0.0, float(code), 0.0, float(rng.random() < 0.5), 0.0, 0.0]
        good = rng.random() < chance_of(code)
        found.append(
            Rated(id=f"{served_id}-{number}", served_id=served_id, traits=tuple(traits), rating=float(good))
        )
    return found


def test_a_version_that_is_good_at_code_only_is_found_out():
    found = train(rows(600, lambda code: 0.9 if code else 0.3))
    weights = found.weights["m@1"]
    assert weights[CODE] > 1.5
    assert all(
        abs(weights[CODE]) > abs(value) for place, value in enumerate(weights) if place not in (0, CODE)
    )
    assert found.evaluation.rows == 600
    assert found.evaluation.gain > 0.1


def test_traits_that_say_nothing_gain_nothing():
    found = train(rows(600, lambda code: 0.6))
    assert found.evaluation.gain < 0.02


def test_few_rows_are_left_out_by_name():
    found = train(rows(MIN_ROWS - 1, lambda code: 0.5, served_id="few@1") + rows(50, lambda code: 0.5))
    assert found.left_out == {"few@1": MIN_ROWS - 1}
    assert set(found.weights) == {"m@1"}


def test_the_same_rows_give_the_same_weights_in_any_order():
    given = rows(200, lambda code: 0.7)
    assert train(given).weights["m@1"] == pytest.approx(train(reversed(given)).weights["m@1"])


def test_answers_that_are_all_good_do_not_blow_up():
    weights = fit(rows(50, lambda code: 1.0))
    assert np.isfinite(weights).all()
    assert weights[0] > 2
