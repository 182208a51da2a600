"""Windows by local clocks: days, midnight, daylight saving."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.capacity.schedule import Window, hot_until, parse_days

BERLIN = "Europe/Berlin"
OFFICE = Window(days=parse_days("mon-fri"), start=time(8), end=time(18), zone=BERLIN)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("daily", {0, 1, 2, 3, 4, 5, 6}),
        ("mon-fri", {0, 1, 2, 3, 4}),
        ("Sat, sun", {5, 6}),
        ("sat-mon", {5, 6, 0}),
        ("wed", {2}),
        ("sun-sat", {6, 0, 1, 2, 3, 4, 5}),
    ],
)
def test_days_are_read(text: str, days: set[int]) -> None:
    assert parse_days(text) == days


@pytest.mark.parametrize("text", ["", "monday", "mon-", "mon,,tue", "mon-fry"])
def test_what_is_no_day_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is no day"):
        parse_days(text)


@pytest.mark.parametrize(
    ("now", "hot"),
    [
        ("2026-01-05T06:59:59", False),  # Monday, winter: UTC+1
        ("2026-01-05T07:00:00", True),
        ("2026-01-05T16:59:59", True),
        ("2026-01-05T17:00:00", False),
        ("2026-07-06T06:00:00", True),  # summer: UTC+2
        ("2026-07-06T16:00:00", False),
        ("2026-01-04T12:00:00", False),  # Sunday
    ],
)
def test_the_zones_clocks_decide_in_winter_and_in_summer(now: str, hot: bool) -> None:
    assert (hot_until([OFFICE], at(now)) is not None) is hot


def test_it_is_hot_a_loads_time_before_the_window_opens() -> None:
    now = at("2026-01-05T06:59:00")
    assert hot_until([OFFICE], now, lead_s=59.0) is None
    assert hot_until([OFFICE], now, lead_s=60.0) == at("2026-01-05T17:00:00")


def test_over_midnight_it_belongs_to_the_day_on_which_it_began() -> None:
    night = Window(days=parse_days("fri"), start=time(22), end=time(2))
    assert hot_until([night], at("2026-01-09T21:59:00")) is None
    assert hot_until([night], at("2026-01-10T01:59:00")) == at("2026-01-10T02:00:00"), "Saturday morning"
    assert hot_until([night], at("2026-01-09T01:00:00")) is None, "Friday morning is Thursday's"
    assert hot_until([night], at("2026-01-09T23:59:00"), 0) == at("2026-01-10T02:00:00")


def test_the_same_time_twice_is_a_whole_day() -> None:
    whole = Window(days=parse_days("mon"), start=time(6), end=time(6))
    assert hot_until([whole], at("2026-01-06T05:59:00")) == at("2026-01-06T06:00:00")


def test_a_start_that_the_clocks_jump_over_is_an_hour_later() -> None:
    early = Window(days=parse_days("sun"), start=time(2, 30), end=time(4), zone=BERLIN)
    # 2026-03-29: 02:00 becomes 03:00, so 02:30 is 03:30, which is 01:30 UTC.
    assert hot_until([early], at("2026-03-29T01:29:00")) is None
    assert hot_until([early], at("2026-03-29T01:30:00")) == at("2026-03-29T02:00:00")


def test_an_hour_that_comes_twice_is_hot_twice() -> None:
    late = Window(days=parse_days("sun"), start=time(2), end=time(2, 30), zone=BERLIN)
    # 2026-10-25: 02:00 to 03:00 comes at 00:00 UTC and again at 01:00 UTC.
    assert hot_until([late], at("2026-10-25T00:00:00")) == at("2026-10-25T01:30:00")
    assert hot_until([late], at("2026-10-25T01:29:00")) is not None
    assert hot_until([late], at("2026-10-25T01:30:00")) is None


def test_of_windows_that_overlap_the_last_end_counts() -> None:
    later = Window(days=parse_days("daily"), start=time(12), end=time(20))
    assert hot_until([OFFICE, later], at("2026-01-05T13:00:00")) == at("2026-01-05T20:00:00")


@given(
    st.frozensets(st.integers(0, 6), min_size=1),
    st.times(),
    st.times(),
    st.sampled_from(["UTC", BERLIN, "America/New_York", "Asia/Kathmandu", "Pacific/Apia"]),
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
)
def test_a_window_is_never_hot_for_more_than_its_length_and_an_hour(
    days: frozenset[int], start: time, end: time, zone: str, now: datetime
) -> None:
    window = Window(days=days, start=start.replace(fold=0), end=end.replace(fold=0), zone=zone)
    for begin, until in window.around(now.replace(tzinfo=UTC)):
        assert begin - timedelta(hours=1) <= until <= begin + timedelta(hours=26)
