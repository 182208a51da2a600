"""Whether a pause ends soon, from the pauses before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.capacity.pauses import Pauses


def learned(*pauses_s: float) -> Pauses:
    found = Pauses()
    for pause_s in pauses_s:
        found.ended(pause_s)
    return found


def test_in_a_session_the_next_request_is_near_and_a_while_after_it_is_not() -> None:
    sessions = learned(*([3.0] * 19 + [1000.0]) * 3)

    assert sessions.again(1.0, 10.0, sessions) > 0.8
    assert sessions.again(60.0, 10.0, sessions) < 0.2


def test_one_that_is_hardly_known_does_what_all_of_them_do() -> None:
    quick, slow = learned(*[2.0] * 50), learned(*[900.0] * 50)

    assert Pauses().again(0.0, 10.0, quick) > 0.9
    assert Pauses().again(0.0, 10.0, slow) < 0.1
    assert learned(*[2.0] * 50).again(0.0, 10.0, slow) > 0.9, "its own pauses count for more"


def test_where_nothing_is_known_the_longer_it_has_lasted_the_longer_it_lasts() -> None:
    nobody = Pauses()
    chances = [nobody.again(idle_s, 60.0, nobody) for idle_s in (1.0, 60.0, 600.0, 90_000.0)]
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < 0.01


def test_what_was_usual_long_ago_fades() -> None:
    changed = learned(*[2.0] * 200, *[500.0] * 200)
    assert changed.again(0.0, 10.0, changed) < 0.2


@given(st.lists(st.floats(0, 1e6), max_size=40), st.floats(0, 1e6), st.floats(0, 1e5), st.floats(0, 1e5))
def test_it_is_a_probability_and_grows_with_the_time_given(
    pauses_s: list[float], idle_s: float, within_s: float, more_s: float
) -> None:
    own, everyone = learned(*pauses_s), learned(*pauses_s, 10.0)
    less = own.again(idle_s, within_s, everyone)
    assert -1e-9 <= less <= 1 + 1e-9
    assert less <= own.again(idle_s, within_s + more_s, everyone) + 1e-9
