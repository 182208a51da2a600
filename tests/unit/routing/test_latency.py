"""Latency that is learned from what was measured."""

from __future__ import annotations

import math
import random

import pytest

from routing.core.latency import LEAST, LatencyLearner
from routing.core.live import DeploymentLoad, measured


def teach(learner: LatencyLearner, rng: random.Random, count: int, *, pace: float = 1.0) -> None:
    """Answers of a deployment with known coefficients and 5% of noise."""
    for _ in range(count):
        waiting, running, prompt = rng.randrange(20), rng.randrange(1, 32), rng.randrange(10, 4000)
        noise = rng.uniform(0.95, 1.05)
        learner.observe(
            waiting=waiting,
            running=running,
            prompt_tokens=prompt,
            ttft_s=pace * (0.05 + 0.2 * waiting + 0.0004 * prompt) * noise,
            tpot_s=pace * (0.02 + 0.001 * running) * noise,
        )


def test_the_coefficients_are_found() -> None:
    learner = LatencyLearner()
    teach(learner, random.Random(1), 500)
    found = learner.latency()
    assert found is not None
    assert found.per_waiting_s == pytest.approx(0.2, rel=0.1)
    assert found.per_token_s == pytest.approx(0.0004, rel=0.1)
    assert found.tpot_s == pytest.approx(0.02, rel=0.1)
    assert found.tpot_per_running_s == pytest.approx(0.001, rel=0.15)
    assert learner.ttft_error is not None
    assert learner.ttft_error < 0.15


def test_what_was_is_forgotten_when_the_deployment_becomes_slower() -> None:
    learner, rng = LatencyLearner(), random.Random(2)
    teach(learner, rng, 500)
    teach(learner, rng, 500, pace=3.0)
    found = learner.latency()
    assert found is not None
    assert found.per_waiting_s == pytest.approx(0.6, rel=0.1)


def test_nothing_is_claimed_of_what_was_hardly_seen() -> None:
    learner = LatencyLearner()
    teach(learner, random.Random(3), LEAST - 1)
    assert learner.latency() is None


@pytest.mark.parametrize("ttft_s", [0.0, -1.0, float("nan"), float("inf")])
def test_what_cannot_be_is_not_believed(ttft_s: float) -> None:
    learner = LatencyLearner()
    learner.observe(waiting=0, running=1, prompt_tokens=10, ttft_s=ttft_s, tpot_s=None)
    assert learner.seen == 0


def test_the_same_answer_a_hundred_thousand_times_does_not_break_it() -> None:
    learner = LatencyLearner()
    for _ in range(100_000):
        learner.observe(waiting=0, running=1, prompt_tokens=100, ttft_s=0.1, tpot_s=0.02)
    found = learner.latency()
    assert found is not None
    assert found.base_s + found.per_token_s * 100 == pytest.approx(0.1, rel=0.01)
    assert found.tpot_s + found.tpot_per_running_s == pytest.approx(0.02, rel=0.01)


def test_a_rate_that_has_faded_for_hours_makes_no_prediction_without_a_number() -> None:
    for waiting in (0, 3):
        found = measured(DeploymentLoad(ready=1, waiting=waiting, jobs_per_s=5e-324, tokens_per_s=5e-324))
        assert math.isfinite(found.per_waiting_s * waiting)
        assert math.isfinite(found.tpot_s)
