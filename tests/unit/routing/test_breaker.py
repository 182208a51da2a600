"""The circuit breaker, with the clock as an argument."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routing.core.breaker import (
    FIRST_COOLDOWN_S,
    LEAST,
    LONGEST_COOLDOWN_S,
    PROBE_LOST_AFTER_S,
    PROBES,
    WINDOW_S,
    Breaker,
    State,
)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(LEAST):
        breaker.failed(now)
    assert breaker.state is State.OPEN
    return breaker


def test_a_few_failures_do_not_open_it_and_half_of_many_do() -> None:
    breaker = Breaker()
    for _ in range(LEAST - 1):
        breaker.failed(0.0)
    assert breaker.lets_through(0.0)
    breaker.failed(0.0)
    assert not breaker.lets_through(0.0)


def test_failures_among_more_successes_do_not_open_it() -> None:
    breaker = Breaker()
    for number in range(100):
        breaker.succeeded(float(number))
        breaker.succeeded(float(number))
        breaker.failed(float(number))
    assert breaker.state is State.CLOSED


def test_what_is_older_than_the_window_does_not_count() -> None:
    breaker = Breaker()
    for _ in range(LEAST - 1):
        breaker.failed(0.0)
    breaker.failed(WINDOW_S + 1)
    assert breaker.state is State.CLOSED


def test_after_the_cooldown_one_probe_at_a_time_is_let_through() -> None:
    breaker = opened()
    assert not breaker.lets_through(FIRST_COOLDOWN_S - 0.1)
    for _ in range(PROBES):
        assert breaker.lets_through(FIRST_COOLDOWN_S)
        breaker.began(FIRST_COOLDOWN_S)
        assert not breaker.lets_through(FIRST_COOLDOWN_S)
        breaker.succeeded(FIRST_COOLDOWN_S)
    assert breaker.state is State.CLOSED


def test_a_failed_probe_opens_it_for_twice_as_long_up_to_a_bound() -> None:
    breaker, now, cooldown_s = opened(), 0.0, FIRST_COOLDOWN_S
    for _ in range(8):
        now += cooldown_s
        assert breaker.lets_through(now)
        breaker.began(now)
        breaker.failed(now)
        cooldown_s = min(LONGEST_COOLDOWN_S, 2 * cooldown_s)
        assert not breaker.lets_through(now + cooldown_s - 0.1)
    assert cooldown_s == LONGEST_COOLDOWN_S


def test_a_probe_whose_client_left_or_that_is_lost_makes_room_for_the_next() -> None:
    breaker = opened()
    assert breaker.lets_through(10.0)
    breaker.began(10.0)
    breaker.left()
    assert breaker.lets_through(10.0)
    breaker.began(10.0)
    assert not breaker.lets_through(11.0)
    assert breaker.lets_through(10.0 + PROBE_LOST_AFTER_S)


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.sampled_from(["ok", "bad", "left", "ask"])), max_size=200))
def test_it_never_stays_open_for_ever(steps: list[tuple[float, str]]) -> None:
    breaker, now = Breaker(), 0.0
    for wait_s, what in steps:
        now += wait_s
        if what == "ask":
            if breaker.lets_through(now):
                breaker.began(now)
        elif what == "left":
            breaker.left()
        else:
            (breaker.succeeded if what == "ok" else breaker.failed)(now)
    # A moment more: floats round.
    assert breaker.lets_through(now + max(LONGEST_COOLDOWN_S, PROBE_LOST_AFTER_S) + 1e-6)
