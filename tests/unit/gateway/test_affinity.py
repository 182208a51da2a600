"""What one gateway process knows of its replicas: what it saw accepted, their beats, and what it has sent since."""

from __future__ import annotations

from typing import Any

from inference.gateway.affinity import BLOCK_CHARS, MOST_BLOCKS, Affinity, blocks_of
from inference.gateway.config import GatewayConfig
from inference.gateway.flight import Flight
from inference.gateway.live import LiveState
from inference.protocol import Sampling
from tests.unit.gateway.flights import flight, plan

LONG = "a long beginning that many share, " * 40


def chat(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


def knowing(*replicas: str, **config: Any) -> tuple[Affinity, LiveState]:
    live = LiveState()
    for replica in replicas:
        beat(live, replica)
    return Affinity(live, GatewayConfig(redis_url="", **config)), live


def beat(live: LiveState, replica: str, **more: Any) -> None:
    fields = {"replica": replica, "deployment": "echo", "worker": f"w-{replica}", "state": "ready"}
    live.beat({"max_streams": 64, **fields, **more}, 0.0)


def asks(text: str = LONG, **more: Any) -> Flight:
    return flight(of=plan(messages=chat(text), **more))


def serve(affinity: Affinity, one: Flight, replica: str) -> str:
    """Place it, and let this replica accept it; what it preferred."""
    preferred = affinity.place(one)
    affinity.accepted(one, replica)
    return preferred


def test_who_has_served_a_beginning_is_preferred_for_the_next_that_has_it():
    affinity, _ = knowing("a", "b")
    serve(affinity, asks("what a was sent first, " * 100), "a")
    serve(affinity, asks(LONG + "one question"), "b")
    found = affinity.look(plan(messages=chat(LONG + "another one")), "echo")
    assert found is not None
    assert (found.replica, found.matched) == ("b", found.blocks)
    assert affinity.look(plan(messages=chat("other words, " * 100)), "echo").matched == 0


def test_of_a_crowd_that_begins_alike_all_go_where_the_first_was_sent():
    affinity, _ = knowing("a", "b")
    crowd = [affinity.place(asks(f"{LONG} {number}")) for number in range(4)]
    assert len({*crowd}) == 1


def test_a_conversation_is_known_by_its_turns_before():
    affinity, _ = knowing("a", "b")
    serve(affinity, asks(LONG), "a")
    later = flight(
        of=plan(messages=[*chat(LONG), {"role": "assistant", "content": "yes"}, *chat("and now?")])
    )
    assert affinity.place(later) == "a"


def test_without_a_choice_nothing_is_looked_for():
    affinity, live = knowing("a")
    one = asks()
    assert serve(affinity, one, "a") == ""
    assert one.preference is None
    assert one.blocks == []
    beat(live, "b", state="loading")
    assert affinity.look(plan(messages=chat(LONG)), "echo") is None
    beat(live, "b")
    assert affinity.look(plan(messages=chat(LONG)), "echo") is not None
    assert affinity.look(plan(messages=chat("short")), "echo") is None
    off, _ = knowing("a", "b", affinity=False)
    assert off.look(plan(messages=chat(LONG)), "echo") is None


def test_a_replica_that_drains_or_is_lost_is_not_preferred():
    affinity, live = knowing("a", "b", "c")
    serve(affinity, asks(), "a")
    look = plan(messages=chat(LONG))
    assert affinity.look(look, "echo").replica == "a"
    beat(live, "a", state="draining")
    assert affinity.look(look, "echo").replica != "a"
    beat(live, "a")
    assert affinity.look(look, "echo").replica == "a"
    live.lost("a")
    assert affinity.look(look, "echo").replica != "a"


def test_what_was_sent_since_the_last_beat_counts():
    affinity, _ = knowing("a", "b", affinity_factor=1.0, affinity_slack=2)
    first = asks()
    serve(affinity, first, "a")
    affinity.left(first)
    sent = [asks() for _ in range(20)]
    preferred = [affinity.place(one) for one in sent]
    assert preferred[:3] == ["a", "a", "a"]
    assert 10 <= preferred.count("a") <= 12
    assert preferred.count("b") == 20 - preferred.count("a")


def test_what_other_gateways_sent_is_known_by_the_beats():
    affinity, live = knowing("a", "b", affinity_factor=1.0, affinity_slack=2)
    serve(affinity, asks(), "a")
    beat(live, "a", running=20, waiting=4)
    found = affinity.look(plan(messages=chat(LONG)), "echo")
    assert found is not None
    assert (found.replica, found.busy, found.busy_streams) == ("b", "a", 24)
    beat(live, "b", running=23)
    assert affinity.look(plan(messages=chat(LONG)), "echo").replica == "a"


def test_a_request_is_counted_where_it_runs_and_no_more_when_it_is_over():
    affinity, _ = knowing("a", "b")
    ones = [asks(sampling=Sampling(n=3)) for _ in range(5)]
    serve(affinity, ones[0], "a")
    assert affinity._in_hand == {"a": 3}
    affinity.place(ones[1])
    affinity.accepted(ones[1], "b")  # whomever it preferred
    affinity.accepted(ones[1], "b")
    assert affinity._in_hand == {"a": 3, "b": 3}
    for one in ones[2:]:
        affinity.place(one)
    for one in ones:
        affinity.left(one)
        affinity.left(one)
    assert affinity._in_hand == {}


def test_blocks_are_whole_chained_and_bounded():
    text = LONG * 3
    whole = len(text) // BLOCK_CHARS
    one = blocks_of(plan("completions", prompts=[text]), "echo")
    assert len(one) == whole
    assert len(set(one)) == whole
    assert blocks_of(plan("completions", prompts=[text + "tail"]), "echo")[:whole] == one
    assert not set(blocks_of(plan("completions", prompts=["x" + text]), "echo")) & set(one)
    assert not set(blocks_of(plan("completions", prompts=[text]), "other")) & set(one)
    assert len(blocks_of(plan("completions", prompts=["x" * 10**6]), "echo")) == MOST_BLOCKS
    assert blocks_of(plan("completions", prompts=[list(range(200))]), "echo")[:2] == (
        blocks_of(plan("completions", prompts=[[*range(130), 7]]), "echo")
    )
    many = plan(messages=chat(*["word"] * 100_000))
    assert 0 < len(blocks_of(many, "echo")) <= MOST_BLOCKS
