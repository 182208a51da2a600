"""Each event once and in order; what is missing is asked for, what nobody waits for is stopped."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inference.gateway.affinity import Affinity
from inference.gateway.config import GatewayConfig
from inference.gateway.flight import SILENCE_S
from inference.gateway.hub import Hub
from inference.gateway.live import LiveState
from inference.protocol import ACCEPTED, DELTA, DONE
from tests.unit.gateway.flights import flight

USAGE = {"prompt_tokens": 1, "completion_tokens": 3}


class Asked:
    """Stands for Controls."""

    def __init__(self) -> None:
        self.cancelled: list[tuple[str, str]] = []
        self.resends: list[tuple[str, str, int]] = []

    def cancel(self, replica: str, job_id: str) -> None:
        self.cancelled.append((replica, job_id))

    def resend(self, replica: str, job_id: str, from_seq: int) -> None:
        self.resends.append((replica, job_id, from_seq))


def hub() -> tuple[Hub, Asked, list[int]]:
    asked, revisions = Asked(), []
    live = LiveState()
    affinity = Affinity(live, GatewayConfig(redis_url=""))
    return Hub(live, asked, revisions.append, affinity), asked, revisions


def answer(job_id: str, texts: str) -> list[list[Any]]:
    deltas = [[DELTA, 0, text, [at], None, None, None] for at, text in enumerate(texts)]
    return [[job_id, seq, *part] for seq, part in enumerate([[ACCEPTED, "a", [1]], *deltas, [DONE, USAGE]])]


def message(events: list[list[Any]], replica: str = "a", **more: Any) -> dict[str, Any]:
    return {"type": "engine.events", "replica": replica, "events": events, **more}


def text(one: Any) -> str:
    return "".join(event[4] for event in one.pending if event[2] == DELTA)


def test_events_reach_the_flight_of_their_job():
    hubs, _, _ = hub()
    one, two = flight("one"), flight("two")
    hubs.add(one)
    hubs.add(two)
    hubs.dispatch(message(answer("one-1", "abc") + answer("two-1", "xyz")))
    assert (text(one), text(two)) == ("abc", "xyz")


def test_a_gap_is_asked_for_and_what_comes_after_it_waits():
    hubs, asked, _ = hub()
    one = flight("one")
    hubs.add(one)
    events = answer("one-1", "abc")
    hubs.dispatch(message(events[:2]))
    hubs.dispatch(message(events[3:]))
    assert asked.resends == [("a", "one-1", 2)]
    assert text(one) == "a"
    hubs.dispatch(message(events[2:], alive=[["one-1", 5]]))
    assert text(one) == "abc"


@given(st.randoms(use_true_random=False), st.text(alphabet="abc", max_size=12))
def test_whatever_is_lost_or_doubled_the_resent_whole_completes_the_text(rng: random.Random, texts: str):
    hubs, _, _ = hub()
    one = flight("one")
    hubs.add(one)
    events = answer("one-1", texts)
    for event in events:
        for _ in range(rng.choice([0, 1, 1, 2])):
            hubs.dispatch(message([event]))
    hubs.dispatch(message(events[one.next_seq :]))
    assert text(one) == texts
    assert one.completion_tokens == 3


def test_an_engine_that_works_for_nobody_is_told_once():
    hubs, asked, _ = hub()
    hubs.dispatch(message(answer("gone-1", "abc")))
    hubs.dispatch(message(answer("gone-1", "abc")))
    assert asked.cancelled == [("a", "gone-1")]


def test_the_end_of_a_job_that_nobody_knows_needs_no_cancel():
    hubs, asked, _ = hub()
    hubs.dispatch(message(answer("gone-1", "")[-1:]))
    assert asked.cancelled == []


def test_a_job_given_back_before_its_first_token_begins_again_elsewhere():
    hubs, _, _ = hub()
    one = flight("one")
    hubs.add(one)
    hubs.dispatch(message(answer("one-1", "abc")[:1], "a"))
    hubs.dispatch(message(answer("one-1", "xyz"), "b"))
    assert text(one) == "xyz"
    assert one.replica == "b"


def test_a_second_engine_cannot_mix_its_text_into_anothers():
    hubs, asked, _ = hub()
    one = flight("one")
    hubs.add(one)
    hubs.dispatch(message(answer("one-1", "abc")[:2], "a"))
    hubs.dispatch(message(answer("one-1", "xyz"), "b"))
    assert text(one) == "a"
    assert ("b", "one-1") in asked.cancelled


def test_a_replica_that_did_not_know_a_job_before_it_took_it_is_not_suspected():
    hubs, _, _ = hub()
    one = flight("one")
    hubs.add(one)
    unknown = message([], unknown=["one-1"])
    hubs.dispatch(unknown)
    assert one.unknown_to == {"a"}
    hubs.dispatch(message(answer("one-1", "abc")[:2]))
    hubs.dispatch(unknown)
    assert one.unknown_to == set()
    one.heard_at -= 2 * SILENCE_S
    hubs.dispatch(unknown)
    assert one.unknown_to == {"a"}


def test_beats_losses_and_revisions_go_where_they_belong():
    hubs, _, revisions = hub()
    beat = {"replica": "a", "deployment": "echo", "worker": "w", "state": "ready", "max_streams": 4}
    hubs.dispatch({"type": "replica.beat", **beat})
    assert hubs._live.loads["echo"].ready == 1
    hubs.dispatch({"type": "replica.lost", "replica": "a", "reason": "x"})
    assert not hubs._live.loads
    hubs.dispatch({"type": "config.revision", "revision": 9})
    assert revisions == [9]


def test_a_hundred_thousand_requests_leave_nothing_behind():
    hubs, _, _ = hub()
    for number in range(100_000):
        one = flight(str(number))
        hubs.add(one)
        hubs.dispatch(message([[one.job_id, 0, DONE, USAGE]]))
        hubs.remove(one)
        hubs.dispatch(message([[one.job_id, 1, DELTA, 0, "x", [1], None, None, None]]))
    assert len(hubs) == 0
    assert len(hubs._told) <= 10_001
