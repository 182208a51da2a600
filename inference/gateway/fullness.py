"""Which queues are full, as far as this process knows: whoever is refused should not cost what an answer does."""

from __future__ import annotations

from dataclasses import dataclass

# For how long Redis' word on a queue's length is believed: an engine may take jobs at any moment.
TRUST_S = 0.02
# For so long a full queue is full for those at the door, but for one at a time, who asks anew: a hundred who took a
# place for free because nobody had asked for a moment would wait for each other, and be refused late.
STALE_S = 0.1


@dataclass(slots=True)
class _Queue:
    waiting: int = 0  # as Redis last said
    told_at: float = float("-inf")
    asked: int = 0  # admissions under way
    in_line: int = 0  # who will ask next: before those who come, behind those who are being taken up
    taken_up: int = 0  # who was in line, and has not asked yet or never will
    taken_at: float = float("-inf")


class Fullness:
    """Owned by the event loop; by deployment. ``now`` is the monotonic clock."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self.refused_at = float("-inf")  # when a queue was full last

    def full(self, deployment: str, bound: int, now: float, *, for_last: bool = False) -> int | None:
        """How many wait, if one more would certainly be refused; None: ask Redis.

        Those that this process is asking Redis to admit at this moment count as waiting; for the last one in line,
        also those before it.
        """
        queue = self._queues.get(deployment)
        if queue is None:
            return None
        before = queue.asked
        if for_last:
            before += queue.in_line + (queue.taken_up if now - queue.taken_at < TRUST_S else 0)
        trusted_s = STALE_S if for_last and before and queue.waiting >= bound else TRUST_S
        waiting = before + (queue.waiting if now - queue.told_at < trusted_s else 0)
        if waiting < bound:
            return None
        self.refused_at = now
        return waiting

    def ask(self, deployment: str) -> None:
        """Redis is being asked to admit one."""
        queue = self._queue(deployment)
        queue.asked += 1
        queue.taken_up = max(0, queue.taken_up - 1)

    def lined_up(self, deployment: str) -> None:
        """One more stands in line to ask."""
        self._queue(deployment).in_line += 1

    def left_line(self, deployment: str) -> None:
        """One fewer stands in line."""
        self._queue(deployment).in_line -= 1

    def taken_up(self, deployment: str, now: float) -> None:
        """One that was in line is on its way to ask."""
        queue = self._queue(deployment)
        queue.taken_up = 1 + (queue.taken_up if now - queue.taken_at < TRUST_S else 0)
        queue.taken_at = now

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
