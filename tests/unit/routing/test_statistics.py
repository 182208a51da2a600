"""What the statistics promise, held against simulated experiments that are looked at all the time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.core.statistics import metrics as m
from routing.core.statistics.compare import Difference, bonferroni, compare, difference_of, harm, scale_of
from routing.core.statistics.means import estimate, paired_variance
from routing.core.statistics.metrics import METRICS
from routing.core.statistics.mismatch import ALPHA as RATIO_ALPHA
from routing.core.statistics.mismatch import chi_square_tail, log_bayes_factor, mismatch
from routing.core.statistics.planning import observations, sequential_information, textbook_information
from routing.core.statistics.quantiles import (
    BINS,
    GROUPS,
    bin_of,
    bins_of,
    design_effect,
    interval,
    quantile,
    seconds_at,
)
from routing.core.statistics.quantiles import difference as quantile_difference
from routing.core.statistics.sequences import Numbers
from routing.core.statistics.totals import CLUSTERS, Outcome, Totals
from routing.core.statistics.units import UnitSample

ALPHA = 0.05
RUNS = 2000
LOOKS = 40
UNITS = 64  # clusters of a simulated arm
# A rate of 5% measured in 2,000 runs strays by 0.5% (one standard deviation).
SLACK = 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)

Look = tuple[Numbers, Numbers, Numbers, Numbers]


def growing(rng: np.random.Generator, per_look: float, draw: object, runs: int = RUNS) -> Iterator[Look]:
    """Sums by unit of both arms, look after look: top and bottom of the control, then of the treatment."""
    shape = (runs, UNITS)
    sums = [np.zeros(shape) for _ in range(4)]
    for _ in range(LOOKS):
        for arm in (0, 1):
            count = rng.poisson(per_look, shape).astype(float)
            sums[2 * arm + 1] += count
            sums[2 * arm] += draw(arm, count)  # type: ignore[operator]
        yield sums[0], sums[1], sums[2], sums[3]


def difference(
    look: Look, *, effect: float = 0.1, proportion: bool = False, alpha: float = ALPHA
) -> Difference:
    base = estimate(look[0], look[1], proportion=proportion)
    new = estimate(look[2], look[3], proportion=proportion)
    return difference_of(base, new, alpha=alpha, effect=effect)


def ever_outside(looks: Iterator[Look], *, truth: float = 0.0, proportion: bool = False) -> float:
    """The part of the runs whose interval ever missed the truth."""
    missed = np.zeros(RUNS, bool)
    for look in looks:
        found = difference(look, proportion=proportion)
        missed |= np.abs(found.delta - truth) > found.half
    return float(missed.mean())


def errors_of(rng: np.random.Generator, rates: tuple[float, float]) -> object:
    return lambda arm, count: rng.binomial(count.astype(int), rates[arm])


def seconds_of(
    rng: np.random.Generator, *, units: tuple[Numbers, Numbers] | None = None, lift: float = 0.0
) -> object:
    """Latencies of a heavy-tailed kind; each unit has a level of its own that it keeps for good."""

    def draw(arm: int, count: Numbers) -> Numbers:
        level = units[arm] if units else 1.0
        # The sum of log-normal times, by its mean and variance: a gamma variable.
        mean, variance = 1.0, 1.5
        shape = np.maximum(count, 1e-9) * mean**2 / variance
        return np.where(count > 0, rng.gamma(shape, variance / mean), 0.0) * level * (1 + lift * arm)

    return draw


def test_looking_all_the_time_at_equal_error_rates_errs_no_more_often_than_alpha() -> None:
    rng = np.random.default_rng(1)
    for rate in (0.3, 0.02):
        wrong = ever_outside(growing(rng, 4, errors_of(rng, (rate, rate))), proportion=True)
        assert wrong <= ALPHA + SLACK


def test_looking_all_the_time_at_equal_latencies_of_uneven_units_errs_no_more_often_than_alpha() -> None:
    rng = np.random.default_rng(2)
    levels = rng.lognormal(0, 0.5, (RUNS, UNITS)), rng.lognormal(0, 0.5, (RUNS, UNITS))
    assert ever_outside(growing(rng, 5, seconds_of(rng, units=levels))) <= ALPHA + SLACK


def test_the_textbooks_interval_errs_far_more_often_when_it_is_looked_at_all_the_time() -> None:
    rng = np.random.default_rng(3)
    wrong = np.zeros(RUNS, bool)
    for look in growing(rng, 4, errors_of(rng, (0.3, 0.3))):
        found = difference(look, proportion=True)
        with np.errstate(divide="ignore"):
            wrong |= np.abs(found.delta) > 1.96 / np.sqrt(found.information)
    assert wrong.mean() > 3 * ALPHA  # else the tests above could not fail


def test_forgetting_the_units_errs_far_more_often() -> None:
    rng = np.random.default_rng(4)
    levels = rng.lognormal(0, 0.5, (RUNS, UNITS)), rng.lognormal(0, 0.5, (RUNS, UNITS))
    wrong = np.zeros(RUNS, bool)
    for look in growing(rng, 40, seconds_of(rng, units=levels)):
        # As if every request were a unit: the variance of the gamma law, spread over the count.
        count = look[1].sum(axis=1)
        delta = look[2].sum(axis=1) / look[3].sum(axis=1) - look[0].sum(axis=1) / count
        wrong |= np.abs(delta) > 1.96 * np.sqrt(2 * 1.5 / count)
    assert wrong.mean() > 3 * ALPHA


def test_the_interval_covers_a_true_difference_at_all_looks_at_once() -> None:
    rng = np.random.default_rng(5)
    looks = growing(rng, 5, errors_of(rng, (0.2, 0.26)))
    assert 1 - ever_outside(looks, truth=0.06, proportion=True) >= 1 - ALPHA - SLACK
    looks = growing(rng, 5, seconds_of(rng, lift=0.2))
    assert 1 - ever_outside(looks, truth=0.2) >= 1 - ALPHA - SLACK


def test_an_effect_is_found_with_the_planned_power_at_the_planned_size() -> None:
    rng = np.random.default_rng(6)
    rate, effect = 0.2, 0.2
    needed = observations(rate * effect, rate * (1 - rate), ALPHA)
    found = np.zeros(RUNS, bool)
    per_look = needed.sequential / LOOKS / 2 / UNITS
    for look in growing(rng, per_look, errors_of(rng, (rate, rate * (1 + effect)))):
        one = difference(look, effect=effect, proportion=True)
        found |= one.delta - one.half > 0
    # Planned for 80% at the last look; a look before it may have found it too.
    assert 0.77 < found.mean() < 0.92


def test_the_textbooks_size_has_the_textbooks_power_for_one_look() -> None:
    assert textbook_information(1.0, 0.05) == pytest.approx(7.849, abs=0.001)
    # 16 σ²/δ² an arm: Lehr's rule (1992).
    assert observations(1.0, 1.0, 0.05).fixed == pytest.approx(2 * 16, rel=0.02)
    rng = np.random.default_rng(7)
    rate, effect = 0.2, 0.2
    needed = observations(rate * effect, rate * (1 - rate), ALPHA)
    look = list(growing(rng, needed.fixed / LOOKS / 2 / UNITS, errors_of(rng, (rate, rate * (1 + effect)))))[
        -1
    ]
    one = difference(look, effect=effect, proportion=True)
    power = float((np.abs(one.delta) > 1.96 / np.sqrt(one.information)).mean())
    assert 0.74 < power < 0.86
    assert 1.5 < sequential_information(1.0, 0.05) / textbook_information(1.0, 0.05) < 2.1


def test_nothing_is_said_of_a_few_requests() -> None:
    arm = Totals()
    for unit in range(10):
        arm.add(Outcome(unit=unit, succeeded=True, e2e_s=1.0))
    found = compare(METRICS["error_rate"], arm, arm, alpha=ALPHA, effect=0.1)
    assert found.low is None
    assert found.chance_better is None


def test_no_error_yet_is_not_no_error_ever() -> None:
    clean, other = Totals(), Totals()
    for unit in range(400):
        clean.add(Outcome(unit=unit, succeeded=True))
        other.add(Outcome(unit=unit, failed=unit % 40 == 0, succeeded=unit % 40 != 0))
    found = compare(METRICS["error_rate"], other, clean, alpha=ALPHA, effect=0.2)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.difference < found.high  # type: ignore[operator]
    assert found.high > 0


def test_worse_is_worse_whichever_way_the_metric_points() -> None:
    slow, quick = Totals(), Totals()
    rng = np.random.default_rng(8)
    for unit in range(20_000):
        quick.add(Outcome(unit=unit, succeeded=True, e2e_s=float(rng.exponential(1.0))))
        slow.add(Outcome(unit=unit, succeeded=True, e2e_s=float(rng.exponential(1.5))))
        slow.add_feedback(unit, value=0.4, before=None, rating=True)
        quick.add_feedback(unit, value=0.8, before=None, rating=True)
    for name in ("e2e", "e2e_p50", "rating"):
        found = compare(METRICS[name], quick, slow, alpha=ALPHA, effect=0.1)
        worse = harm(METRICS[name], found)
        assert worse is not None
        assert worse[1] > 0
        better = harm(METRICS[name], compare(METRICS[name], slow, quick, alpha=ALPHA, effect=0.1))
        assert better is not None
        assert better[2] < 0
        if found.chance_better is not None:
            assert found.chance_better < 0.001


def arm_of(count: int, *, failed: int = 0, cost: float = 0.0) -> Totals:
    """As many requests of as many units; every ``count / failed``-th of them fails."""
    arm = Totals()
    for unit in range(count):
        bad = bool(failed) and unit % (count // failed) == 0
        arm.add(Outcome(unit=unit, failed=bad, succeeded=not bad, cost=cost * (1 + unit % 3)))
    return arm


def worse_by(
    name: str, control: Totals, treatment: Totals, limit: float, *, paired: bool = False
) -> tuple[float, float, float]:
    """A guardrail's value, low and high."""
    metric = METRICS[name]
    found = compare(metric, control, treatment, alpha=ALPHA, effect=limit, limit=limit, paired=paired)
    worse = harm(metric, found)
    assert worse is not None
    return worse


@pytest.mark.parametrize("limit", [0.05, 0.2, 1.0, 10.0])
def test_errors_break_a_guardrail_though_the_control_has_none(limit: float) -> None:
    clean, half = arm_of(3000), arm_of(400, failed=200)
    assert worse_by("error_rate", clean, half, limit)[1] > limit
    assert worse_by("error_rate", half, clean, limit)[2] < limit


def test_two_arms_without_an_error_are_not_over_any_limit() -> None:
    value, low, high = worse_by("error_rate", arm_of(300), arm_of(300), 0.05)
    assert (value, low) == (0.0, -high)
    assert 0.05 < high < math.inf  # not proved to hold either


@pytest.mark.parametrize("limit", [0.05, 1.0, 10.0])
def test_a_price_breaks_a_guardrail_though_the_control_costs_nothing(limit: float) -> None:
    free, priced = arm_of(300), arm_of(300, cost=1e-6)
    assert worse_by("cost", free, priced, limit)[1] > limit
    assert worse_by("cost", priced, free, limit)[2] < 0
    assert worse_by("cost", free, free, limit) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("failed", [100, 200])
def test_a_shadows_errors_break_a_guardrail_though_no_original_failed(failed: int) -> None:
    clean, broken = arm_of(200), arm_of(200, failed=failed)
    assert worse_by("error_rate", clean, broken, 0.5, paired=True)[1] > 0.5
    value, low, high = worse_by("error_rate", clean, clean, 0.5, paired=True)
    assert (value, low) == (0.0, -high)


def test_the_control_is_what_it_is_compared_with_whatever_its_sign() -> None:
    scores = {level: Totals() for level in (-4.0, -2.0, 0.0, 2.0)}
    rng = np.random.default_rng(20)
    for unit in range(2000):
        for level, arm in scores.items():
            arm.add_feedback(unit, value=level + float(rng.normal(0, 0.3)), before=None, rating=False)
    for control, treatment, part in ((-2.0, -4.0, 1.0), (-2.0, 2.0, -2.0), (2.0, -2.0, 2.0)):
        value, low, high = worse_by("score", scores[control], scores[treatment], 0.1)
        assert value == pytest.approx(part, abs=0.05)
        assert low > 0.1 if part > 0 else high < 0
    assert worse_by("score", scores[0.0], scores[-4.0], 0.1)[1] > 0.1
    assert worse_by("score", scores[0.0], scores[2.0], 0.1)[2] < 0


def test_the_controls_own_uncertainty_counts_more_where_worse_is_farther_from_zero() -> None:
    rng = np.random.default_rng(27)
    good, bad, shorter = Totals(), Totals(), Totals()
    for unit in range(2000):
        for level, arm in ((0.8, good), (-2.0, bad)):
            arm.add_feedback(unit, value=level + float(rng.normal(0, 0.1)), before=None, rating=False)
        shorter.add(Outcome(unit=unit, succeeded=True, cost=float(rng.exponential(1.0))))
    for name, arm, counts_more in (("score", good, False), ("score", bad, True), ("cost", shorter, True)):
        widths = []
        for limit in (0.0, 1.0):
            found = compare(METRICS[name], arm, arm, alpha=ALPHA, effect=1.0, limit=limit)
            assert found.high is not None
            widths.append(found.high)
        # Twice the control's deviation: √(4 + 1) instead of √2.
        assert widths[1] / widths[0] == pytest.approx(math.sqrt(2.5) if counts_more else 1.0, rel=0.1)


def ever_over(looks: Iterator[Look], limit: float) -> float:
    """The part of the runs in which a guardrail of error rates was ever broken."""
    broken = np.zeros(RUNS, bool)
    for look in looks:
        base, new = (estimate(look[at], look[at + 1], proportion=True) for at in (0, 2))
        found = difference_of(base, new, alpha=ALPHA, effect=limit, limit=limit)
        broken |= (found.delta - found.half) / scale_of(base, new) > limit
    return float(broken.mean())


@pytest.mark.parametrize("rate", [0.0, 0.0005, 0.005])
def test_rare_errors_of_equal_arms_break_a_guardrail_no_more_often_than_alpha(rate: float) -> None:
    rng = np.random.default_rng(21)
    assert ever_over(growing(rng, 4, errors_of(rng, (rate, rate))), 0.05) <= ALPHA + SLACK


def test_an_arm_that_is_as_bad_as_the_limit_allows_breaks_it_no_more_often_than_alpha() -> None:
    rng = np.random.default_rng(22)
    for rate, limit in ((0.02, 10.0), (0.05, 1.0)):
        looks = growing(rng, 4, errors_of(rng, (rate, rate * (1 + limit))))
        assert ever_over(looks, limit) <= ALPHA + SLACK
    looks = growing(rng, 1, errors_of(rng, (0.0005, 0.05)))
    assert ever_over(looks, 1.0) > 0.95  # else the tests above could not fail


def histogram(rng: np.random.Generator, size: int, *, levels: Numbers | None = None) -> np.ndarray:
    """Log-normal latencies of GROUPS groups as bins; a group may have a level of its own."""
    groups = np.zeros((GROUPS, BINS), np.uint32)
    owner = rng.integers(0, GROUPS, size)
    seconds = rng.lognormal(-1, 0.8, size) * (1 if levels is None else levels[owner])
    places = np.array([bin_of(float(one)) for one in seconds])
    np.add.at(groups, (owner, places), 1)
    return groups


BIN_LOOKS = 20
BIN_GROUPS = 16
TOGETHER = 250  # runs at once: their bins stay in the cache


def more_bins(
    rng: np.random.Generator,
    bins: np.ndarray,
    per_look: int,
    *,
    levels: Numbers | None = None,
    lift: float = 0.0,
) -> Numbers:
    """Another look's log-normal latencies (run, request), counted in bins (run, group, bin)."""
    runs, groups, _ = bins.shape
    owner = rng.integers(0, groups, (runs, per_look))
    seconds = rng.lognormal(-1, 0.8, (runs, per_look)) * (1 + lift)
    if levels is not None:
        seconds *= np.take_along_axis(levels, owner, axis=1)
    places = (np.arange(runs)[:, None] * groups + owner) * BINS + bins_of(seconds)
    bins += np.bincount(places.ravel(), minlength=bins.size).reshape(bins.shape).astype(np.uint32)
    return seconds


def empty_bins() -> np.ndarray:
    return np.zeros((TOGETHER, BIN_GROUPS, BINS), np.uint32)


def test_the_sequence_of_a_quantile_covers_it_at_all_looks() -> None:
    rng = np.random.default_rng(9)
    truth = {level: math.exp(-1 + 0.8 * NormalDist().inv_cdf(level)) for level in (0.5, 0.95)}
    missed, once = dict.fromkeys(truth, 0), 0
    for _ in range(RUNS // TOGETHER):
        bins, outside = empty_bins(), {level: np.zeros(TOGETHER, bool) for level in truth}
        for look in range(BIN_LOOKS):
            more_bins(rng, bins, 50 + 10 * look)
            for level, value in truth.items():
                _, low, high = interval(bins, level, ALPHA)
                outside[level] |= (value < low) | (value > high)
        for level in truth:
            missed[level] += int(outside[level].sum())
        once += int(((low > truth[0.95] * 0.1) & (high < truth[0.95] * 10)).sum())
    assert all(count <= RUNS * (ALPHA + SLACK) for count in missed.values())
    assert once > 0.99 * RUNS  # else the interval could be anything


def test_the_textbooks_interval_of_a_quantile_errs_far_more_often() -> None:
    rng = np.random.default_rng(23)
    bins, wrong, truth = empty_bins(), np.zeros(TOGETHER, bool), math.exp(-1)
    for look in range(BIN_LOOKS):
        more_bins(rng, bins, 50 + 10 * look)
        counts = bins.sum(axis=1)
        off = 1.96 * np.sqrt(0.25 / counts.sum(axis=1))
        wrong |= (quantile(counts, 0.5 - off) > truth) | (quantile(counts, 0.5 + off) < truth)
    assert wrong.mean() > 3 * ALPHA


def ever_stopped(seed: int, lift: float, runs: int) -> float:
    """The part of the runs in which one of three guardrails of 20% was ever broken: errors, a mean, a quantile."""
    rng = np.random.default_rng(seed)
    limit, alpha = 0.2, bonferroni(ALPHA, 3)
    stopped = 0
    for _ in range(runs // TOGETHER):
        broken = np.zeros(TOGETHER, bool)
        bins = empty_bins(), empty_bins()
        sums = np.zeros((2, 3, TOGETHER, BIN_GROUPS * 4))  # requests, errors, seconds
        for look in range(BIN_LOOKS):
            for arm in (0, 1):
                seconds = more_bins(rng, bins[arm], 50 + 10 * look, lift=lift * arm)
                owner = (
                    rng.integers(0, sums.shape[3], seconds.shape)
                    + sums.shape[3] * np.arange(TOGETHER)[:, None]
                )
                failed = rng.random(seconds.shape) < 0.02 * (1 + lift * arm)
                for place, amount in enumerate((np.ones_like(seconds), failed, seconds)):
                    found = np.bincount(owner.ravel(), amount.ravel(), sums[0, 0].size)
                    sums[arm, place] += found.reshape(sums[0, 0].shape)
            for column, proportion in ((1, True), (2, False)):
                base, new = (estimate(one[column], one[0], proportion=proportion) for one in sums)
                one = difference_of(base, new, alpha=alpha, effect=limit, limit=limit)
                broken |= (one.delta - one.half) / scale_of(base, new) > limit
            low = quantile_difference(*bins, 0.95, alpha, limit)[1]
            broken |= low / quantile(bins[0].sum(axis=1), 0.95) > limit
        stopped += int(broken.sum())
    return stopped / runs


def test_all_guardrails_together_stop_a_sound_arm_no_more_often_than_alpha() -> None:
    assert ever_stopped(24, 0.0, RUNS) <= ALPHA + SLACK


def test_all_guardrails_together_stop_an_arm_that_is_at_each_of_their_limits_no_more_often_than_alpha() -> (
    None
):
    assert ever_stopped(25, 0.2, RUNS // 2) <= ALPHA + SLACK
    assert ever_stopped(26, 1.0, TOGETHER) > 0.95  # else neither could fail


def test_a_quantile_of_groups_that_differ_is_less_certain() -> None:
    rng = np.random.default_rng(10)
    even = histogram(rng, 5000)
    uneven = histogram(rng, 5000, levels=rng.lognormal(0, 0.7, GROUPS))
    assert design_effect(even, 0.5) < 2
    assert design_effect(uneven, 0.5) > 8
    assert np.diff(interval(uneven, 0.5, ALPHA)[1:]) > 2 * np.diff(interval(even, 0.5, ALPHA)[1:])


@given(st.floats(60e-6, 500))
@settings(deadline=None)
def test_a_latency_lies_in_its_bin(seconds: float) -> None:
    place = bin_of(seconds)
    assert seconds_at(place) <= seconds * (1 + 1e-9)
    assert seconds < seconds_at(place + 1) * (1 + 1e-9)
    counts = np.zeros(BINS)
    counts[place] = 7
    assert quantile(counts, 0.5) == pytest.approx(seconds, rel=0.06)


def test_sound_shares_are_hardly_ever_called_a_mismatch_however_often_they_are_looked_at() -> None:
    rng = np.random.default_rng(11)
    alarms = 0
    for _ in range(RUNS):
        arms = np.cumsum(rng.multinomial(200, [0.6, 0.3, 0.1], size=20), axis=0)
        alarms += any(mismatch(counts.tolist(), [60, 30, 10]).broken for counts in arms)
    # 2 are expected at most; more than 7 by chance happens once in a thousand times.
    assert alarms <= RUNS * RATIO_ALPHA + 5


def test_a_mismatch_is_found() -> None:
    found = mismatch([5300, 4700], [50, 50])
    assert found.broken
    assert found.p < 1e-8
    assert not mismatch([5050, 4950], [50, 50]).broken


def test_the_chi_square_tail_is_that_of_the_tables() -> None:
    for value, freedom, p in (
        (3.841, 1, 0.05),
        (5.991, 2, 0.05),
        (7.815, 3, 0.05),
        (13.277, 4, 0.01),
        (20.515, 5, 0.001),
    ):
        assert chi_square_tail(value, freedom) == pytest.approx(p, rel=2e-3)
    assert log_bayes_factor([0, 0], [0.5, 0.5]) == pytest.approx(0)


outcomes = st.lists(
    st.builds(
        Outcome,
        unit=st.integers(0, 2**64 - 1),
        failed=st.booleans(),
        succeeded=st.booleans(),
        cost=st.floats(0, 1),
        output_tokens=st.integers(0, 4096),
        ttft_s=st.none() | st.floats(0, 1000),
        e2e_s=st.none() | st.floats(0, 1000),
    ),
    max_size=20,
)


@given(outcomes, outcomes)
@settings(deadline=None, max_examples=25)
def test_totals_add_up_and_survive_their_storage(first: list[Outcome], second: list[Outcome]) -> None:
    one, other, both = Totals(), Totals(), Totals()
    for outcome in first:
        one.add(outcome)
        both.add(outcome)
    for outcome in second:
        other.add(outcome)
        both.add(outcome)
    one += Totals.from_bytes(other.to_bytes())
    assert np.allclose(one.sums, both.sums)
    assert np.array_equal(one.bins, both.bins)
    assert one.requests == len(first) + len(second)


@given(outcomes, outcomes)
@settings(deadline=None, max_examples=25)
def test_a_batch_counts_as_its_outcomes_one_by_one_do(before: list[Outcome], batch: list[Outcome]) -> None:
    one, other = Totals(), Totals()
    for outcome in before:
        one.add(outcome)
        other.add(outcome)
    for outcome in batch:
        one.add(outcome)
    other.add_all(batch)
    assert np.allclose(one.sums, other.sums)
    assert np.array_equal(one.bins, other.bins)


def test_a_rating_that_is_given_again_replaces_the_former() -> None:
    arm = Totals()
    arm.add_feedback(5, value=0.0, before=None, rating=True)
    arm.add_feedback(5, value=1.0, before=0.0, rating=True)
    assert arm.sums[m.RATINGS].sum() == 1
    assert arm.sums[m.RATING, 5 % CLUSTERS] == 1.0


def test_the_sample_of_units_is_bounded_and_counts_each_unit_once() -> None:
    sample = UnitSample(most=1000)
    for again in range(2):
        for unit in range(5000):
            sample.add(unit * 0x9E3779B97F4A7C15 % 2**64, 1 + (unit % 4 == 0))
        assert sample.distinct() == pytest.approx(5000, rel=0.15), again
    counts = sample.counts()
    assert sum(counts.values()) == 1000
    assert counts[2] == pytest.approx(250, abs=5 * 14)
    again = UnitSample.from_bytes(sample.to_bytes())
    assert again.counts() == counts


def test_samples_merge_into_the_sample_of_all_units() -> None:
    one, other, both = UnitSample(most=100), UnitSample(most=100), UnitSample(most=100)
    for unit in range(1000):
        number = unit * 0x9E3779B97F4A7C15 % 2**64
        (one if unit % 3 else other).add(number, unit % 2)
        both.add(number, unit % 2)
    one.merge(other)
    assert one.counts() == both.counts()
    assert one.distinct() == both.distinct()


def test_pairs_find_a_difference_that_two_groups_of_the_same_size_hide() -> None:
    rng = np.random.default_rng(12)
    original, copy = Totals(), Totals()
    for unit in range(400):
        seconds = float(rng.lognormal(0, 1))  # requests differ a lot, two answers to one request little
        original.add(Outcome(unit=unit, succeeded=True, e2e_s=seconds))
        copy.add(Outcome(unit=unit, succeeded=True, e2e_s=seconds * float(rng.normal(0.9, 0.05))))
    apart = compare(METRICS["e2e"], original, copy, alpha=ALPHA, effect=0.1)
    pairs = compare(METRICS["e2e"], original, copy, alpha=ALPHA, effect=0.1, paired=True)
    assert apart.high is not None
    assert pairs.high is not None
    assert pairs.high < 0 < apart.high
    assert pairs.difference == apart.difference


def test_looking_all_the_time_at_pairs_without_a_difference_errs_no_more_often_than_alpha() -> None:
    rng = np.random.default_rng(13)
    shape = (RUNS, UNITS)
    sums = [np.zeros(shape) for _ in range(3)]
    wrong = np.zeros(RUNS, bool)
    for _ in range(LOOKS):
        count = rng.poisson(4, shape).astype(float)
        common = rng.gamma(np.maximum(count, 1e-9)) * (count > 0)
        sums[0] += count
        sums[1] += common + rng.normal(0, 0.3, shape) * np.sqrt(count)
        sums[2] += common + rng.normal(0, 0.3, shape) * np.sqrt(count)
        base, new = estimate(sums[1], sums[0]), estimate(sums[2], sums[0])
        variance = paired_variance((sums[1], sums[0]), (sums[2], sums[0]))
        found = difference_of(base, new, alpha=ALPHA, effect=0.05, variance=variance)
        wrong |= np.abs(found.delta) > found.half
    assert 0 < wrong.mean() <= ALPHA + SLACK
