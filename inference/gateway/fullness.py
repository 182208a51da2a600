"""Which queues are full, as far as this process knows: whoever is refused should not cost what an answer does."""

from __future__ import annotations

from dataclasses import dataclass

# For how long Redis' word on a queue's length is believed: an engine may take jobs at any moment.
TRUST_S = 0.02


@dataclass(slots=True)
class _Queue:
    waiting: int = 0  # as Redis last said
    told_at: float = float("-inf")
    asked: int = 0  # admissions under way
    in_line: int = 0  # who will ask next: before those who come, behind those who are being taken up


class Fullness:
    """Owned by the event loop; by deployment. ``now`` is the monotonic clock."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    def full(self, deployment: str, bound: int, now: float, *, for_last: bool = False) -> int | None:
        """How many wait, if one more would certainly be refused; None: ask Redis.

        Those that this process is asking Redis to admit at this moment count as waiting; for the last one in line,
        also those before it.
        """
        queue = self._queues.get(deployment)
        if queue is None:
            return None
        told = queue.waiting if now - queue.told_at < TRUST_S else 0
        waiting = told + queue.asked + (queue.in_line if for_last else 0)
        return waiting if waiting >= bound else None

    def ask(self, deployment: str) -> None:
        """Redis is being asked to admit one."""
        self._queue(deployment).asked += 1

    def lined_up(self, deployment: str, change: int) -> None:
        """So many more (or fewer) stand in line to ask."""
        self._queue(deployment).in_line += change

    def answered(self, deployment: str, waiting: int | None, now: float) -> None:
        """Redis said how many wait now; None: it did not answer."""
        queue = self._queues[deployment]
        queue.asked -= 1
        if waiting is not None:
            queue.waiting, queue.told_at = waiting, now

    def left(self, deployment: str) -> None:
        """One was taken out of the queue by this process."""
        queue = self._queues.get(deployment)
        if queue is not None:
            queue.waiting -= 1

    def _queue(self, deployment: str) -> _Queue:
        queue = self._queues.get(deployment)
        if queue is None:
            queue = self._queues[deployment] = _Queue()
        return queue
