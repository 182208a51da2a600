"""The jobs in hand, and the room for more."""

from __future__ import annotations

from inference.engine.inhand import InHand, Pulled


def pulled(job_id: str, execution: str = "e1") -> Pulled:
    return Pulled(job_id, "d.normal", execution, b"", "")


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
