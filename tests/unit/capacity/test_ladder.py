"""The ladder: what each rung frees, and which step is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.capacity.abilities import abilities
from inference.capacity.ladder import (
    ASLEEP,
    DISCARDED,
    KV_RELEASED,
    LADDER,
    RESTING,
    SERVING,
    STOPPED,
    Held,
    bytes_to_wake,
    step_down,
    steps_down,
)

GIB = 2**30
HELD = Held(total_bytes=20 * GIB, weights_bytes=14 * GIB, kv_cache_bytes=4 * GIB)
GPU = abilities("NVIDIA H100", compute_capability=(9, 0))["ladder"]
CPU = abilities("cpu")["ladder"]


@pytest.mark.parametrize(
    ("needed", "host_free", "rung"),
    [
        (3 * GIB, 100 * GIB, KV_RELEASED),
        (5 * GIB, 100 * GIB, ASLEEP),
        (5 * GIB, 13 * GIB, DISCARDED),  # the host has no room for the weights
        (19 * GIB, 100 * GIB, STOPPED),  # only the end gives back the context too
        (25 * GIB, 100 * GIB, STOPPED),  # not enough, but the most
    ],
)
def test_it_goes_no_deeper_than_the_need(needed: int, host_free: int, rung: str) -> None:
    step = step_down(GPU, SERVING, HELD, needed_bytes=needed, host_free_bytes=host_free, load_s=30.0)
    assert step is not None
    assert step.rung == rung


def test_a_cpu_has_nothing_between_serving_and_stopped() -> None:
    assert CPU == [SERVING, STOPPED, "remote"]
    step = step_down(CPU, SERVING, HELD, needed_bytes=1, host_free_bytes=100 * GIB, load_s=30.0)
    assert step is not None
    assert (step.rung, step.freed_bytes) == (STOPPED, HELD.total_bytes)


def test_the_measured_way_back_decides() -> None:
    """Here weights come faster from files than from host memory."""
    measured = {ASLEEP: 4.0, DISCARDED: 2.0}
    step = step_down(
        GPU, SERVING, HELD, needed_bytes=5 * GIB, host_free_bytes=100 * GIB, load_s=30.0, measured=measured
    )
    assert step is not None
    assert (step.rung, step.back_s) == (DISCARDED, 2.0)


def test_from_where_the_weights_are_in_host_memory_or_gone_there_is_only_the_end_and_it_frees_the_rest() -> (
    None
):
    for rung in (ASLEEP, DISCARDED):
        [step] = steps_down(GPU, rung, HELD, load_s=30.0, measured={})
        assert step.rung == STOPPED
        assert step.freed_bytes == HELD.total_bytes - HELD.freed_by(rung)


@pytest.mark.parametrize(
    ("needed", "host_free", "rung"),
    [
        (14 * GIB, 100 * GIB, ASLEEP),
        (14 * GIB, 13 * GIB, DISCARDED),
        (15 * GIB, 100 * GIB, STOPPED),
    ],
)
def test_one_whose_cache_is_released_goes_down_further_and_frees_what_it_has_left(
    needed: int, host_free: int, rung: str
) -> None:
    step = step_down(GPU, KV_RELEASED, HELD, needed_bytes=needed, host_free_bytes=host_free, load_s=30.0)
    assert step is not None
    assert (step.rung, step.freed_bytes) == (rung, HELD.freed_by(rung) - HELD.kv_cache_bytes)


def test_what_a_device_does_not_have_is_no_step_from_a_middle_rung_either() -> None:
    found = steps_down(
        [SERVING, KV_RELEASED, DISCARDED, STOPPED], KV_RELEASED, HELD, load_s=30.0, measured={}
    )
    assert [step.rung for step in found] == [DISCARDED, STOPPED]


def test_waking_asks_for_what_was_given_back() -> None:
    assert bytes_to_wake(SERVING, HELD, HELD.total_bytes) == 0
    assert bytes_to_wake(ASLEEP, HELD, 2 * GIB) == 18 * GIB


@given(
    st.integers(0, 40 * GIB),
    st.integers(0, 40 * GIB),
    st.integers(0, 40 * GIB),
    st.integers(0, 80 * GIB),
    st.integers(0, 40 * GIB),
    st.sampled_from([SERVING, *RESTING]),
)
def test_a_step_frees_enough_wherever_one_could_and_never_overfills_the_host(
    weights: int, cache: int, rest: int, needed: int, host_free: int, at: str
) -> None:
    held = Held(total_bytes=weights + cache + rest, weights_bytes=weights, kv_cache_bytes=cache)
    step = step_down(GPU, at, held, needed_bytes=needed, host_free_bytes=host_free, load_s=10.0)
    assert step is not None, "the end is always there"
    assert LADDER.index(step.rung) > LADDER.index(at)
    assert step.host_bytes <= host_free
    assert held.freed_by(at) + step.freed_bytes <= held.total_bytes
    if needed <= held.total_bytes - held.freed_by(at):
        assert step.freed_bytes >= needed
