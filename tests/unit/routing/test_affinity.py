"""A prompt goes where its beginning was seen, and never beyond what is bounded."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from routing.core.affinity import HOLDERS, Bounds, InHand, Prefixes

REPLICAS = ("a", "b", "c", "d", "e", "f")


def ready(**streams: int) -> dict[str, InHand]:
    return {replica: InHand(count, 64) for replica, count in streams.items()}


def known(*learned: tuple[list[int], str], **bounds: float) -> Prefixes:
    found = Prefixes(Bounds(**bounds))
    for blocks, replica in learned:
        found.learn(blocks, replica)
    return found


def test_the_longest_beginning_wins():
    prefixes = known(([1, 2], "a"), ([1, 2, 3], "b"))
    found = prefixes.prefer([1, 2, 3, 4], ready(a=0, b=3))
    assert (found.replica, found.matched, found.blocks) == ("b", 3, 4)
    assert found.why == "replica b has seen 3 of 4 blocks of the prompt"


def test_among_equals_the_one_with_less_in_hand():
    prefixes = known(([1, 2], "a"), ([1, 2], "b"))
    assert prefixes.prefer([1, 2], ready(a=1, b=2)).replica == "a"
    assert prefixes.prefer([1, 2], ready(a=2, b=1)).replica == "b"
    assert prefixes.prefer([1, 2], ready(a=1, b=1)).replica == "b", "the last that saw it"


def test_beyond_its_bound_a_replica_is_left_alone_and_the_answer_says_so():
    prefixes = known(([1, 2], "a"), factor=1.25, slack=2)
    assert prefixes.prefer([1, 2], ready(a=6, b=0)).replica == "a"  # 7 of 1.25 x 3.5 + 2
    found = prefixes.prefer([1, 2], ready(a=7, b=0))  # 8 of 1.25 x 4 + 2
    assert (found.replica, found.busy) == ("b", "a")
    assert found.why == (
        "replica a has seen 2 of 2 blocks of the prompt, but has 7 streams in hand, of 7 at most; "
        "b has room and has seen least"
    )


def test_a_busy_one_gives_way_to_one_that_has_seen_less():
    prefixes = known(([1, 2, 3], "a"), ([1], "b"))
    assert prefixes.prefer([1, 2, 3], ready(a=30, b=2)).replica == "b"


def test_nobody_is_preferred_who_could_not_run_it():
    prefixes = known(([1], "a"), slack=100)
    assert prefixes.prefer([1], {"a": InHand(4, 4), "b": InHand(0, 4)}).busy == "a"
    assert prefixes.prefer([1], {"a": InHand(3, 4), "b": InHand(0, 4)}, streams=2).busy == "a"


def test_who_is_not_ready_is_not_preferred():
    prefixes = known(([1, 2], "a"))
    found = prefixes.prefer([1, 2], ready(b=1, c=0))
    assert (found.replica, found.matched, found.busy) == ("c", 0, "")
    assert found.why == "no replica has seen the prompt's beginning lately; c has room and has seen least"


def test_what_nobody_has_seen_goes_to_whoever_has_seen_least():
    prefixes = known(([1, 2, 3], "a"), ([4, 5], "b"))
    assert prefixes.prefer([9], ready(a=0, b=2)).replica == "b"
    assert prefixes.prefer([9], ready(a=0, b=20)).replica == "a", "within the bound"
    prefixes.learn([9, 10], "b")
    assert prefixes.prefer([11], ready(a=0, b=2)).replica == "a"


def test_where_nobody_has_room_nobody_is_preferred():
    prefixes = known(([1], "a"))
    found = prefixes.prefer([1], {"a": InHand(4, 4), "b": InHand(4, 4)})
    assert (found.replica, found.busy) == ("", "a")
    assert found.why.endswith("of 4 at most; nobody has room")
    assert prefixes.prefer([2], {"a": InHand(4, 4), "b": InHand(4, 4)}).why.endswith(
        "lately; nobody has room"
    )


def test_the_oldest_and_the_last_blocks_of_a_prompt_are_forgotten_first():
    prefixes = known(([1, 2, 3], "a"), ([7, 8], "b"), blocks=4)
    assert len(prefixes) == 4
    assert prefixes.prefer([1, 2, 3], ready(a=0, b=0)).matched == 2
    prefixes.learn([1, 2], "a")  # used again
    prefixes.learn([11, 12], "b")
    assert prefixes.prefer([1, 2], ready(a=0, b=0)).replica == "a"
    assert prefixes.prefer([7, 8], ready(a=0, b=0)).matched == 0


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 20), max_size=6), st.sampled_from(REPLICAS)), max_size=60),
    st.integers(1, 30),
)
def test_what_is_remembered_is_bounded(learned: list[tuple[list[int], str]], most: int):
    prefixes = known(*learned, blocks=most)
    assert len(prefixes) <= most
    assert all(len(holders) <= HOLDERS for holders in prefixes._seen.values())
    assert prefixes._counts == Counter(one for holders in prefixes._seen.values() for one in holders)


@given(
    st.dictionaries(st.sampled_from(REPLICAS), st.integers(0, 80), min_size=2),
    st.lists(st.sampled_from(REPLICAS), min_size=1),
    st.floats(1.0, 4.0),
    st.integers(0, 8),
    st.integers(1, 8),
)
def test_whoever_is_preferred_is_ready_and_within_the_bound(
    streams: dict[str, int], holders: list[str], factor: float, slack: int, more: int
):
    prefixes = known(*[([1, 2], holder) for holder in holders], factor=factor, slack=slack)
    loads = {replica: InHand(count, 64) for replica, count in streams.items()}
    found = prefixes.prefer([1, 2, 3], loads, more)
    bound = math.ceil(factor * (sum(streams.values()) + more) / len(streams)) + slack
    if found.replica:
        assert streams[found.replica] + more <= min(bound, 64)
    if found.busy:
        assert streams[found.busy] + more > min(bound, 64)


@given(st.floats(1.0, 2.0), st.integers(0, 5), st.integers(2, 6), st.integers(1, 300))
def test_a_prefix_that_all_share_does_not_unbalance_the_replicas_further(
    factor: float, slack: int, count: int, requests: int
):
    """Nothing ever ends."""
    prefixes = known(([1], REPLICAS[0]), factor=factor, slack=slack)
    streams = dict.fromkeys(REPLICAS[:count], 0)
    for _ in range(requests):
        loads = {replica: InHand(taken, 10_000) for replica, taken in streams.items()}
        goes_to = prefixes.prefer([1], loads).replica
        prefixes.learn([1], goes_to)
        streams[goes_to] += 1
    assert max(streams.values()) <= math.ceil(factor * requests / count) + slack
