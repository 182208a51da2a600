"""How much longer than predicted first tokens take."""

from __future__ import annotations

from routing.core.latency import TAIL_LEAST, TAIL_WINDOW, Tail


def test_nothing_is_known_of_a_few_and_then_the_95th_percentile_by_rank() -> None:
    tail = Tail()
    for number in range(TAIL_LEAST - 1):
        tail.note(float(number))
    assert tail.p95() is None
    tail.note(19.0)
    assert tail.p95() == 18.0


def test_what_is_long_past_is_forgotten() -> None:
    tail = Tail()
    for _ in range(TAIL_WINDOW):
        tail.note(100.0)
    for _ in range(TAIL_WINDOW):
        tail.note(1.0)
    assert tail.p95() == 1.0
