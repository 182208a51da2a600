"""What a process knows of queues that are full."""

from __future__ import annotations

from inference.gateway.fullness import STALE_S, TRUST_S, Fullness


def test_of_a_queue_that_nobody_asked_for_redis_is_asked() -> None:
    assert Fullness().full("echo", 1, 0.0) is None


def test_what_redis_said_is_believed_for_a_moment_only() -> None:
    known = Fullness()
    known.ask("echo")
    known.answered("echo", 8, 1.0)

    assert known.full("echo", 8, 1.0) == 8
    assert known.full("echo", 9, 1.0) is None
    assert known.full("echo", 8, 1.0 + TRUST_S) is None
    assert known.full("other", 8, 1.0) is None


def test_one_that_this_process_took_back_leaves_its_place_at_once() -> None:
    known = Fullness()
    known.left("echo")
    known.ask("echo")
    known.answered("echo", 8, 1.0)
    known.left("echo")

    assert known.full("echo", 8, 1.0) is None


def test_those_that_are_being_admitted_count_as_waiting() -> None:
    known = Fullness()
    for _ in range(3):
        known.ask("echo")
    assert known.full("echo", 3, 0.0) == 3

    known.answered("echo", None, 0.0)
    assert known.full("echo", 3, 0.0) is None, "Redis did not answer for one of them"

    known.answered("echo", 2, 0.0)
    assert known.full("echo", 3, 0.0) == 3, "two wait, one is being admitted"


def test_those_in_line_are_before_who_comes_and_behind_who_is_taken_up():
    known = Fullness()
    for _ in range(8):
        known.lined_up("echo")
    assert known.full("echo", 8, 1.0, for_last=True) == 8
    assert known.full("echo", 8, 1.0) is None

    known.left_line("echo")
    known.taken_up("echo", 1.0)
    assert known.full("echo", 8, 1.0, for_last=True) == 8
    known.ask("echo")
    assert known.full("echo", 8, 1.0, for_last=True) == 8
    assert known.full("echo", 8, 1.0) is None


def test_who_was_taken_up_and_never_asked_is_forgotten():
    known = Fullness()
    known.lined_up("echo")
    known.left_line("echo")
    known.taken_up("echo", 1.0)

    assert known.full("echo", 1, 1.0, for_last=True) == 1
    assert known.full("echo", 1, 1.0 + TRUST_S, for_last=True) is None


def test_when_nobody_has_asked_for_a_moment_one_at_a_time_does():
    known = Fullness()
    known.ask("echo")
    known.answered("echo", 8, 1.0)

    a_moment_later = 1.0 + 2 * TRUST_S
    assert known.full("echo", 8, a_moment_later, for_last=True) is None
    known.lined_up("echo")
    assert known.full("echo", 8, a_moment_later, for_last=True) == 9
    assert known.full("echo", 8, 1.0 + 2 * STALE_S, for_last=True) is None
