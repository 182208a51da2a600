"""What remains of a load, as earlier ones tell it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.capacity.eta import (
    FETCH,
    KEPT,
    LOAD,
    WAIT,
    PastLoad,
    left_s,
    recent_median,
    remaining_s,
    remembered,
    usual_s,
    with_one_more,
)

seconds = st.floats(0, 1e4)
USUAL = [PastLoad(wait_s=4.0, fetch_s=0.0, load_s=10.0)] * 5


def test_one_outlier_moves_a_median_little_wherever_it_is() -> None:
    assert recent_median([10.0, 10.5, 500.0, 11.0, 10.2]) == 10.5
    assert recent_median([10.0, 10.5, 11.0, 10.2, 500.0]) == 10.5


def test_a_machine_that_became_faster_is_believed_after_some_loads() -> None:
    assert recent_median([60.0] * 5 + [5.0] * 4) == 5.0


def test_what_remains_shrinks_and_ends_in_nobody_knows() -> None:
    found = [left_s([10.0, 10.0, 20.0], at) for at in (0.0, 8.0, 10.5, 20.0, 29.0, 31.0)]

    assert found == [10.0, 2.0, 9.5, 0.0, 0.0, None]


@pytest.mark.parametrize(
    ("stage", "elapsed_s", "fetch_left_s", "expected"),
    [
        (WAIT, 1.0, None, 13.0),
        (LOAD, 9.0, None, 1.0),
        (FETCH, 2.0, 7.0, 17.0),
        (FETCH, 2.0, None, None),  # it never fetched, and has no bytes to tell
        (LOAD, 100.0, None, None),
    ],
)
def test_each_stage_adds_those_that_follow(
    stage: str, elapsed_s: float, fetch_left_s: float | None, expected: float | None
) -> None:
    assert remaining_s(USUAL, stage, elapsed_s, fetch_left_s=fetch_left_s) == expected


def test_before_the_first_load_nobody_knows() -> None:
    assert usual_s([]) is None
    assert remaining_s([], LOAD, 1.0) is None
    assert remaining_s([], FETCH, 1.0, fetch_left_s=5.0) is None, "how long it then loads is not known"


def test_who_never_waited_for_memory_promises_its_load_alone() -> None:
    assert remaining_s([PastLoad(load_s=10.0)], WAIT, 3.0) == 10.0


def test_a_row_remembers_the_latest_loads_only() -> None:
    rows: list[dict[str, float]] = []
    for number in range(KEPT + 3):
        rows = with_one_more(rows, PastLoad(load_s=float(number)))

    assert len(rows) == KEPT
    assert remembered(rows)[-1] == PastLoad(load_s=KEPT + 2.0)


@given(st.lists(seconds, min_size=1, max_size=KEPT), seconds)
def test_a_promise_is_never_negative_nor_longer_than_what_was_seen(values: list[float], at: float) -> None:
    found = left_s(values, at)

    assert found is None or 0.0 <= found <= max(values)
