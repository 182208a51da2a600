"""Placement: filters with reasons, then a score; properties over machines of all kinds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.capacity.abilities import abilities
from inference.capacity.estimate import GIB
from inference.capacity.placement import PACK, SPREAD, DeviceRoom, Need, place, refusal, refusals

H100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA L4"


def gpu(number: int, node: str = "a", kind: str = H100, free: int = 80, **fields: object) -> DeviceRoom:
    room = DeviceRoom(number, f"{node}/gpu:{number}", 80 * GIB, (80 - free) * GIB, True, node=node, kind=kind)
    return replace(room, **fields)


def test_spread_takes_the_emptiest_and_pack_the_fullest_that_still_holds_it() -> None:
    rooms = [gpu(1, free=80), gpu(2, free=20), gpu(3, free=40), gpu(4, free=9)]
    assert place(Need(bytes=10 * GIB), rooms).device_ids == (1,)
    assert place(Need(bytes=10 * GIB, strategy=PACK), rooms).device_ids == (2,)


@pytest.mark.parametrize("strategy", [SPREAD, PACK])
def test_a_node_that_has_the_files_comes_first(strategy: str) -> None:
    here = frozenset({"acme--m--1", "acme--n--1"})
    rooms = [gpu(1, "a", free=80), gpu(2, "b", free=30, files=here), gpu(3, "c", free=12)]
    need = Need(bytes=10 * GIB, strategy=strategy, files="acme--m--1")
    assert place(need, rooms).device_ids == (2,)
    assert place(replace(need, bytes=40 * GIB), rooms).device_ids == (1,), "only where there is room"


def test_what_others_use_is_not_given_away() -> None:
    rooms = [gpu(1, used_by_others_bytes=75 * GIB)]
    found = place(Need(bytes=10 * GIB), rooms)
    assert found.device_ids == ()
    assert found.reasons == (
        "a/gpu:1: needs 10.0 GiB, 5.0 GiB free of a budget of 80.0 GiB, of which others use 75.0 GiB",
    )


def test_what_a_device_cannot_do_is_said_with_what_it_can() -> None:
    hopper = abilities(H100, compute_capability=(9, 0), alike_on_node=2)
    ada = abilities(L4, compute_capability=(8, 9))
    rooms = [gpu(1, kind=L4, abilities=ada), gpu(2, kind=H100, free=20, abilities=hopper)]
    need = Need(bytes=GIB, options={"quantization": "fp8_per_block"})

    found = place(need, rooms)

    assert found.device_ids == (2,)
    [why] = refusals(need, rooms)
    assert "quantization fp8_per_block is not possible there" in why
    assert "fp8_per_tensor" in why


def test_a_kind_of_device_may_take_something_else() -> None:
    rooms = [gpu(1, kind=L4, free=10), gpu(2, kind=H100, free=10)]
    need = Need(bytes=8 * GIB, by_kind={L4: 12 * GIB})
    assert place(need, rooms).device_ids == (2,)
    assert "needs 12.0 GiB" in refusals(need, rooms)[0]


def test_tensor_parallel_stays_on_one_node_and_one_kind() -> None:
    rooms = [
        gpu(1, "a"),
        gpu(2, "b"),
        gpu(3, "c", L4),
        gpu(4, "c"),
        gpu(5, "d", free=30),
        gpu(6, "d", free=40),
    ]
    need = Need(bytes=20 * GIB, devices=2)

    assert place(need, rooms).device_ids == (5, 6)

    alone = place(need, rooms[:4])
    assert alone.device_ids == ()
    assert "a: needs 2 devices of one kind, has 1 of NVIDIA H100 80GB HBM3" in alone.reasons
    assert len(alone.reasons) == 4


def test_a_group_that_is_too_full_says_so_of_each_device() -> None:
    found = place(Need(bytes=35 * GIB, devices=2), [gpu(5, "d", free=30), gpu(6, "d", free=40)])
    assert found.reasons == (
        "d: needs 2 devices of one kind, has 1 of 2 of NVIDIA H100 80GB HBM3 "
        "(d/gpu:5: needs 35.0 GiB, 30.0 GiB free of a budget of 80.0 GiB)",
    )


def test_a_group_takes_the_emptiest_and_leaves_whole_what_it_can() -> None:
    rooms = [gpu(1, free=80), gpu(2, free=20), gpu(3, free=70), gpu(4, free=30)]
    assert place(Need(bytes=10 * GIB, devices=2), rooms).device_ids == (1, 3)
    assert place(Need(bytes=10 * GIB, devices=2, strategy=PACK), rooms).device_ids == (2, 4)


ROOMS = st.lists(
    st.builds(
        lambda node, kind, budget, reserved, others, alive: (node, kind, budget, reserved, others, alive),
        st.sampled_from("abc"),
        st.sampled_from([H100, L4]),
        st.integers(0, 100),
        st.integers(0, 120),
        st.integers(0, 50),
        st.booleans(),
    ),
    max_size=12,
).map(
    lambda found: [
        DeviceRoom(
            number,
            f"{node}/gpu:{number}",
            budget,
            reserved,
            alive,
            node=node,
            kind=kind,
            used_by_others_bytes=others,
            files=frozenset({"m"}) if node == "b" else frozenset(),
        )
        for number, (node, kind, budget, reserved, others, alive) in enumerate(found)
    ]
)
NEEDS = st.builds(
    Need,
    bytes=st.integers(1, 100),
    by_kind=st.dictionaries(st.sampled_from([H100, L4]), st.integers(1, 100)),
    devices=st.integers(1, 4),
    strategy=st.sampled_from([SPREAD, PACK]),
    files=st.sampled_from(["", "m"]),
)


@given(NEEDS, ROOMS)
def test_what_is_chosen_holds_it_and_belongs_together(need: Need, rooms: list[DeviceRoom]) -> None:
    chosen = [rooms[number] for number in place(need, rooms).device_ids]

    assert len(chosen) in (0, need.devices)
    assert len({room.id for room in chosen}) == len(chosen)
    assert len({(room.node, room.kind) for room in chosen}) <= 1
    for room in chosen:
        assert room.alive
        assert room.reserved_bytes + room.used_by_others_bytes + need.on(room) <= room.budget_bytes


@given(NEEDS, ROOMS)
def test_nothing_is_refused_that_could_be_placed(need: Need, rooms: list[DeviceRoom]) -> None:
    groups: dict[tuple[str, str], int] = {}
    for room in rooms:
        if refusal(need, room) is None:
            groups[room.node, room.kind] = groups.get((room.node, room.kind), 0) + 1
    found = place(need, rooms)

    assert bool(found.device_ids) == any(count >= need.devices for count in groups.values())
    assert found.device_ids or found.reasons


@given(NEEDS, ROOMS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(need: Need, rooms: list[DeviceRoom], rng: object) -> None:
    shuffled = list(rooms)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert place(need, shuffled).device_ids == place(need, rooms).device_ids


@given(NEEDS.filter(lambda need: need.devices == 1), ROOMS)
def test_of_all_that_hold_it_none_scores_better(need: Need, rooms: list[DeviceRoom]) -> None:
    found = place(need, rooms)
    fitting = [room for room in rooms if refusal(need, room) is None]
    if not fitting:
        return
    [chosen] = [room for room in rooms if room.id == found.device_id]
    warm = [room for room in fitting if need.files in room.files]
    among = warm or fitting
    assert chosen in among
    extreme = min if need.strategy == PACK else max
    assert chosen.free_bytes == extreme(room.free_bytes for room in among)
