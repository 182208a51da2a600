"""Rates and averages of the heartbeat."""

from __future__ import annotations

import pytest

from inference.engine.load import DecayingMean, Load
from inference.engine.messages import Report


def test_a_steady_rate_is_told_truly_from_the_first_second_on() -> None:
    load = Load(now=0.0)
    for tenth in range(1, 301):
        load.take(Report(stepped=True, tokens=10), now=tenth / 10)
        if tenth in (10, 100, 300):
            assert load.tokens_per_s(tenth / 10) == pytest.approx(100.0, rel=0.06)
    assert load.steps == 300


def test_a_rate_fades_when_nothing_comes() -> None:
    load = Load(now=0.0)
    load.take(Report(tokens=1000), now=10.0)
    assert load.tokens_per_s(60.0) < 0.01 * load.tokens_per_s(10.0)


def test_recent_samples_weigh_more() -> None:
    mean = DecayingMean(now=0.0)
    mean.add([1.0] * 10, now=0.0)
    mean.add([2.0] * 10, now=30.0)
    assert 1.9 < mean.mean < 2.0
