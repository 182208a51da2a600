"""How much longer than predicted first tokens take."""

from __future__ import annotations

import pytest

from routing.core.latency import TAIL_LEAST, TAIL_WINDOW, Tail


def test_nothing_is_known_of_a_few_and_then_the_95th_percentile_by_rank() -> None:
    tail = Tail()
    for number in range(TAIL_LEAST - 1):
        tail.note(0.5, 0.5 * number)
    assert tail.p95_s(0.5) is None
    tail.note(0.5, 0.5 * 19)
    assert tail.p95_s(0.5) == pytest.approx(9.0)


def test_what_is_long_past_is_forgotten() -> None:
    tail = Tail()
    for _ in range(TAIL_WINDOW):
        tail.note(1.0, 100.0)
    for _ in range(TAIL_WINDOW):
        tail.note(1.0, 1.0)
    assert tail.p95_s(1.0) == 1.0


def test_prompts_of_about_its_size_speak_for_one() -> None:
    tail = Tail()
    for _ in range(TAIL_LEAST):
        tail.note(0.02, 0.2)
        tail.note(2.0, 3.0)
    assert tail.p95_s(0.03) == pytest.approx(0.3)
    assert tail.p95_s(1.5) == pytest.approx(2.25)
    # Of this size nobody was: all speak.
    assert tail.p95_s(0.2) == pytest.approx(2.0)
