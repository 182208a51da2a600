"""The memory estimate and the placement: pure, so every figure is checked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.capacity.estimate import GIB, estimate
from inference.capacity.placement import DeviceRoom, Need, place


def room(number: int, budget: int, reserved: int = 0, alive: bool = True) -> DeviceRoom:
    return DeviceRoom(number, f"node/cpu:{number}", budget, reserved, alive)


def test_weights_count_as_stored_unless_a_dtype_changes_them() -> None:
    facts = {"weight_bytes": 200, "parameters": 100}
    assert estimate(facts=facts, dtype="auto", kv_cache_bytes=50).weights_bytes == 200
    assert estimate(facts=facts, dtype="float32", kv_cache_bytes=50).weights_bytes == 400
    # vLLM's "auto" makes 16 bits of what is stored in 32; what is stored quantized stays so.
    wide = {"weight_bytes": 400, "parameters": 100, "dtype": "float32"}
    assert estimate(facts=wide, kv_cache_bytes=50).weights_bytes == 200
    packed = {"weight_bytes": 60, "parameters": 100, "quantization": "awq"}
    assert estimate(facts=packed, dtype="float32", kv_cache_bytes=50).weights_bytes == 60


def test_the_parts_add_up() -> None:
    found = estimate(facts={"weight_bytes": 7}, kv_cache_bytes=5, device_kind="gpu")
    assert found.total_bytes == 7 + 5 + found.context_bytes + found.runtime_bytes
    assert set(found.parts()) == {"weights", "kv_cache", "context", "runtime"}


def test_a_refusal_says_what_is_needed_and_what_is_free() -> None:
    placement = place(Need(bytes=14 * GIB), [room(1, 16 * GIB, 7 * GIB)])
    assert placement.device_id is None
    assert placement.reasons == ("node/cpu:1: needs 14.0 GiB, 9.0 GiB free of a budget of 16.0 GiB",)


def test_a_node_that_is_away_gets_nothing() -> None:
    assert place(Need(bytes=1), [room(1, GIB, alive=False)]).reasons == (
        "node/cpu:1: its node is not running",
    )


def test_without_any_device_the_reason_says_what_to_start() -> None:
    assert "manage.py node" in place(Need(bytes=1), []).reasons[0]


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 120), st.booleans()), max_size=8),
)
def test_what_is_chosen_always_fits_and_has_the_most_room(
    needed: int, devices: list[tuple[int, int, bool]]
) -> None:
    rooms = [room(number, *device) for number, device in enumerate(devices)]
    chosen = place(Need(bytes=needed), rooms).device_id
    fitting = [one for one in rooms if one.alive and one.free_bytes >= needed]
    if chosen is None:
        assert not fitting
    else:
        assert rooms[chosen] in fitting
        assert rooms[chosen].free_bytes == max(one.free_bytes for one in fitting)
