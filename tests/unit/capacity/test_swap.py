"""Who goes to sleep for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.capacity.swap import (
    DELAY_POWER,
    HESITATE_S,
    MAX_TRIED,
    Resident,
    Wanted,
    choose_victims,
    spared,
)

A = Resident(id="a", bytes=10, resident_s=100.0, soon=1.0, missed=1.0, reload_s=5.0)
B = Resident(id="b", bytes=10, resident_s=100.0, soon=0.0, reload_s=5.0)
WANTED = Wanted(bytes=10)


def test_nobody_goes_where_there_is_room() -> None:
    assert choose_victims(WANTED, [A, B], free_bytes=10).victims == ()


def test_the_one_that_is_used_least_goes() -> None:
    assert choose_victims(WANTED, [A, B], free_bytes=0).victims == ("b",)


def test_of_two_alike_the_one_that_is_back_sooner_goes() -> None:
    slow, quick = replace(A, reload_s=60.0), replace(A, id="quick", reload_s=2.0)
    assert choose_victims(WANTED, [slow, quick], free_bytes=0).victims == ("quick",)


def test_one_that_frees_enough_spares_the_others() -> None:
    small, big = replace(B, id="small", bytes=2), replace(B, id="big", bytes=10, soon=0.001)
    assert choose_victims(WANTED, [small, big], free_bytes=0).victims == ("big",)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pinned": True}, "pinned"),
        ({"on_demand": False}, "always up"),
        ({"rank": 0}, "of a higher class"),
        ({"busy": True, "resident_s": 3.0, "min_residency_s": 10.0}, "up for 3 s of at least 10 s"),
        # Asked for every second, back in five: it would be missed at once.
        ({"missed": 1.0, "resident_s": 3.0, "min_residency_s": 10.0}, "up for 3 s of at least 4 s"),
        ({"busy": True}, "drained only after 26 s"),
    ],
)
def test_who_is_spared_and_why(change: dict[str, object], why: str) -> None:
    found = choose_victims(WANTED, [replace(B, **change)], free_bytes=0)

    assert found.victims == ()
    assert why in found.reasons[0]


def test_a_busy_one_goes_when_somebody_has_waited_too_long_or_is_more_important() -> None:
    busy = replace(B, busy=True)
    assert choose_victims(replace(WANTED, waited_s=26.5), [busy], free_bytes=0).victims == ("b",)
    assert choose_victims(replace(WANTED, waited_s=9.0, max_wait_s=9.0), [busy], free_bytes=0).victims == (
        "b",
    )
    assert choose_victims(replace(WANTED, rank=0), [busy], free_bytes=0).victims == ("b",)
    assert choose_victims(replace(WANTED, waited_s=30.0), [busy, A], free_bytes=0).victims == ("a",)


residents = st.builds(
    Resident,
    id=st.uuids().map(str),
    bytes=st.integers(1, 50),
    rank=st.integers(0, 2),
    pinned=st.booleans(),
    on_demand=st.booleans(),
    resident_s=st.floats(0, 100),
    min_residency_s=st.floats(0, 100),
    busy=st.booleans(),
    soon=st.floats(0, 1),
    missed=st.floats(0, 1),
    reload_s=st.floats(0.1, 100),
)


@given(st.lists(residents, max_size=8), st.integers(1, 100), st.integers(0, 60), st.floats(0, 60))
def test_victims_make_room_none_is_superfluous_and_none_was_to_be_spared(
    rows: list[Resident], needed: int, free: int, waited: float
) -> None:
    wanted = Wanted(bytes=needed, waited_s=waited)
    found = choose_victims(wanted, rows, free)
    by_id = {row.id: row for row in rows}
    chosen = [by_id[name] for name in found.victims]
    if chosen:
        room = free + sum(row.bytes for row in chosen)
        assert room >= needed
        assert all(room - row.bytes < needed for row in chosen)
        assert not any(row.pinned or not row.on_demand or row.rank < wanted.rank for row in chosen)
        assert not any(row.resident_s < row.residency_s for row in chosen)


COLD = Resident(id="cold", bytes=10, resident_s=3.0, min_residency_s=10.0, busy=True, soon=0.1, reload_s=5.0)


def test_one_that_is_cheaper_is_waited_for_though_it_is_busy() -> None:
    first = choose_victims(WANTED, [A, COLD], free_bytes=0)

    assert first.victims == ()
    assert "waits up to 6 s for cold: cheaper than those that are idle" in first.reasons
    assert choose_victims(WANTED, [A, replace(COLD, busy=False)], free_bytes=0).victims == ("cold",)


@pytest.mark.parametrize(
    "change",
    [
        {"soon": 1.0},
        {"pinned": True},
        {"on_demand": False},
        {"rank": 0},
        # It still loads.
        {"resident_s": 0.0},
    ],
)
def test_one_that_does_not_come_free_or_is_no_cheaper_is_not_waited_for(change: dict[str, object]) -> None:
    assert choose_victims(WANTED, [A, replace(COLD, **change)], free_bytes=0).victims == ("a",)


def test_nobody_hesitates_for_longer_than_it_may_wait() -> None:
    assert choose_victims(replace(WANTED, waited_s=6.0), [A, COLD], free_bytes=0).victims == ("a",)
    quick = replace(WANTED, waited_s=2.0, max_wait_s=2.0)
    assert choose_victims(quick, [A, COLD], free_bytes=0).victims == ("a",)


def test_the_cheapest_set_is_found_where_the_cheapest_a_byte_would_overshoot() -> None:
    rows = [
        replace(A, id="half", bytes=5, soon=0.4),
        replace(A, id="other", bytes=5, soon=0.4),
        replace(A, id="big", bytes=12, soon=0.9),
    ]
    assert choose_victims(WANTED, rows, free_bytes=0).victims == ("half", "other")
    assert choose_victims(replace(WANTED, bytes=12), rows, free_bytes=0).victims == ("big",)


def test_the_turn_is_by_class_then_past_the_bound_by_waiting_then_by_urgency() -> None:
    important = replace(WANTED, rank=0)
    long = replace(WANTED, waited_s=9.0, jobs=1)
    short = replace(WANTED, waited_s=3.0, jobs=3)
    late = replace(WANTED, waited_s=30.0, jobs=1)
    later = replace(WANTED, waited_s=31.0, jobs=1)
    flood = replace(WANTED, waited_s=29.0, jobs=1000)
    found = sorted([long, flood, late, short, later, important], key=lambda one: one.turn)
    assert found == [important, later, late, flood, long, short]


def test_of_two_that_wait_as_long_the_one_with_more_jobs_or_the_shorter_load_is_next() -> None:
    one = replace(WANTED, waited_s=4.0, jobs=1, load_s=6.0)
    many = replace(one, jobs=4)
    quick = replace(one, load_s=2.0)
    assert sorted([one, many, quick], key=lambda row: row.turn) == [quick, many, one]


def test_a_long_wait_outweighs_jobs_and_a_short_load() -> None:
    slow = replace(WANTED, waited_s=20.0, jobs=1, load_s=12.0)
    quick = replace(WANTED, waited_s=5.0, jobs=4, load_s=3.0)
    assert slow.turn < quick.turn
    assert replace(slow, waited_s=10.0).turn > quick.turn


@given(st.integers(1, 50), st.floats(1, 29), st.floats(0.6, 60))
def test_urgency_is_that_of_the_generalized_c_mu_rule_with_ages_spread_evenly(
    jobs: int, waited_s: float, load_s: float
) -> None:
    wanted = replace(WANTED, jobs=jobs, waited_s=waited_s, load_s=load_s)
    steps = 1000
    ages = [waited_s * (step + 0.5) / steps for step in range(steps)]
    others = (jobs - 1) * sum(DELAY_POWER * age ** (DELAY_POWER - 1) for age in ages) / steps
    expected = (DELAY_POWER * waited_s ** (DELAY_POWER - 1) + others) / load_s
    assert wanted.urgency == pytest.approx(expected, rel=1e-3)


@given(st.lists(residents, max_size=14), st.integers(1, 100), st.floats(0, 60))
def test_no_other_set_of_eligible_ones_costs_less_where_all_are_tried(
    rows: list[Resident], needed: int, waited: float
) -> None:
    wanted = Wanted(bytes=needed, waited_s=max(HESITATE_S, waited))
    found = choose_victims(wanted, rows, 0)
    eligible = [row for row in rows if spared(row, wanted) is None]
    if not found.victims:
        assert sum(row.bytes for row in eligible) < needed
        return
    idle = [row for row in eligible if not row.busy]
    alone = [row.cost for row in idle if row.bytes >= needed]
    if alone and len(eligible) <= MAX_TRIED:
        assert found.cost <= min(alone)
