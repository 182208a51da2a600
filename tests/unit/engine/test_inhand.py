"""The jobs in hand, and the room for more."""

from __future__ import annotations

from inference.engine.inhand import InHand, Pulled

HIGH, NORMAL, LOW = range(3)


def pulled(job_id: str, execution: str = "e1", priority: str = "normal") -> Pulled:
    return Pulled(job_id, f"d.{priority}", execution, b"", "")


async def test_room_counts_streams_and_returns_with_the_job() -> None:
    inhand = InHand(max_streams=8)
    assert inhand.room == 9  # one more than the batch, so that it never waits for a job
    held = inhand.take(pulled("a"), 0.0)
    assert held is not None
    inhand.set_streams(held, 4)
    assert inhand.room == 5
    inhand.release("a")
    assert inhand.room == 9


async def test_a_job_that_is_enqueued_twice_has_two_executions_and_runs_once() -> None:
    inhand = InHand(max_streams=8)
    held = inhand.take(pulled("a", "e1"), 0.0)
    assert inhand.take(pulled("a", "e2"), 0.0) is None
    assert held is not None
    assert held.executions == ["e1", "e2"]


async def test_a_cancel_that_overtakes_its_job_still_counts() -> None:
    inhand = InHand(max_streams=8)
    assert inhand.cancel("a", "gone") is None
    held = inhand.take(pulled("a"), 0.0)
    assert held is not None
    assert held.cancelled == "gone"


async def test_a_class_has_the_room_that_there_would_be_without_lower_ones() -> None:
    inhand = InHand(max_streams=8)
    for number in range(9):
        inhand.take(pulled(f"{number}", priority="low" if number < 6 else "normal"), 0.0)
    assert inhand.room == 0
    assert inhand.room_over(LOW) == 0
    assert inhand.room_over(NORMAL) == 6
    assert inhand.room_over(HIGH) == 9
    inhand.release("8")
    assert [inhand.room_over(rank) for rank in (HIGH, NORMAL, LOW)] == [9, 7, 1]


async def test_all_classes_together_take_twice_the_capacity_at_most() -> None:
    inhand = InHand(max_streams=8)
    for priority in ("low", "normal"):
        for number in range(9):
            inhand.take(pulled(f"{priority}{number}", priority=priority), 0.0)
    assert inhand.streams == 18
    assert [inhand.room_over(rank) for rank in (HIGH, NORMAL, LOW)] == [0, 0, -9]


async def test_who_was_raised_is_overtaken_by_nobody() -> None:
    inhand = InHand(max_streams=8)
    held = inhand.take(pulled("a", priority="low"), 0.0)
    assert held is not None
    inhand.set_streams(held, 9)
    assert inhand.room_over(HIGH) == 9
    inhand.raise_class(held)
    assert inhand.room_over(HIGH) == 0
    inhand.release("a")
    assert inhand.room_over(HIGH) == 9
