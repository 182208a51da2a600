"""Who goes to sleep for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.capacity.swap import Resident, UseRate, Wanted, choose_victims

A = Resident(id="a", bytes=10, resident_s=100.0, uses_per_s=1.0, reload_s=5.0)
B = Resident(id="b", bytes=10, resident_s=100.0, uses_per_s=0.0, reload_s=5.0)
WANTED = Wanted(bytes=10)


def test_nobody_goes_where_there_is_room() -> None:
    assert choose_victims(WANTED, [A, B], free_bytes=10).victims == ()


def test_the_one_that_is_used_least_goes() -> None:
    assert choose_victims(WANTED, [A, B], free_bytes=0).victims == ("b",)


def test_of_two_alike_the_one_that_is_back_sooner_goes() -> None:
    slow, quick = replace(A, reload_s=60.0), replace(A, id="quick", reload_s=2.0)
    assert choose_victims(WANTED, [slow, quick], free_bytes=0).victims == ("quick",)


def test_one_that_frees_enough_spares_the_others() -> None:
    small, big = replace(B, id="small", bytes=2), replace(B, id="big", bytes=10, uses_per_s=0.001)
    assert choose_victims(WANTED, [small, big], free_bytes=0).victims == ("big",)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pinned": True}, "pinned"),
        ({"on_demand": False}, "always up"),
        ({"rank": 0}, "of a higher class"),
        ({"busy": True, "resident_s": 3.0, "min_residency_s": 10.0}, "up for 3 s of at least 10 s"),
        # Asked for every second, back in five: it would be missed at once.
        ({"uses_per_s": 1.0, "resident_s": 3.0, "min_residency_s": 10.0}, "up for 3 s of at least 4 s"),
        ({"busy": True}, "drained only after 18 s"),
    ],
)
def test_who_is_spared_and_why(change: dict[str, object], why: str) -> None:
    found = choose_victims(WANTED, [replace(B, **change)], free_bytes=0)

    assert found.victims == ()
    assert why in found.reasons[0]


def test_a_busy_one_goes_when_somebody_has_waited_too_long_or_is_more_important() -> None:
    busy = replace(B, busy=True)
    assert choose_victims(replace(WANTED, waited_s=18.0), [busy], free_bytes=0).victims == ("b",)
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
    uses_per_s=st.floats(0, 10),
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


def test_a_rate_of_use_decays() -> None:
    rate = UseRate(0.0)
    for second in range(1, 601):
        rate.observe(2.0, float(second))
    assert rate.at(600.0) == pytest.approx(2.0, rel=0.2)
    assert rate.at(900.0) < 0.4 * rate.at(600.0)
