"""Events kept for gateways that missed some."""

from __future__ import annotations

from inference.engine.retained import Retained, estimated_bytes
from inference.protocol import ACCEPTED, DELTA, DONE


def delta(job: str, seq: int, text: str = "hello") -> list[object]:
    return [job, seq, DELTA, 0, text, [1], None, None, None]


def told(retained: Retained, job: str, deltas: int, now: float) -> None:
    """A whole job: accepted, its deltas, done."""
    retained.add([job, 0, ACCEPTED, "r", [1]], now)
    for seq in range(1, deltas + 1):
        retained.add(delta(job, seq), now)
    retained.add([job, deltas + 1, DONE, {}], now)


def test_a_running_job_is_told_from_the_asked_number_on() -> None:
    retained = Retained()
    retained.add(["a", 0, ACCEPTED, "r", [1]], 0.0)
    retained.add(delta("a", 1), 0.0)
    retained.add(delta("a", 2), 0.0)
    assert [event[1] for event in retained.since("a", 1) or []] == [1, 2]
    assert retained.next_seq("a") == 3


def test_a_finished_job_is_kept_for_a_while_and_then_forgotten() -> None:
    retained = Retained(keep_s=60.0)
    told(retained, "a", 2, now=0.0)
    retained.prune(59.0)
    assert retained.since("a", 0) is not None
    assert retained.next_seq("a") is None
    retained.prune(60.0)
    assert retained.since("a", 0) is None


def test_finished_jobs_beyond_the_byte_bound_are_forgotten_oldest_first() -> None:
    bound = 6 * estimated_bytes(delta("a", 1)) + 4 * 400
    retained = Retained(max_bytes=bound)
    for name in "abc":
        told(retained, name, 3, now=0.0)
    assert retained.since("a", 0) is None
    assert retained.since("b", 0) is not None
    assert retained.since("c", 0) is not None
    assert retained.finished_bytes <= bound


def test_running_jobs_survive_any_number_of_finished_ones() -> None:
    retained = Retained(max_bytes=1)
    retained.add(["running", 0, ACCEPTED, "r", [1]], 0.0)
    told(retained, "done", 5, now=0.0)
    assert retained.since("done", 0) is None
    assert retained.since("running", 0) is not None


def test_a_job_that_is_given_back_is_forgotten() -> None:
    retained = Retained()
    retained.add(["a", 0, ACCEPTED, "r", [1]], 0.0)
    retained.drop("a")
    assert retained.since("a", 0) is None
