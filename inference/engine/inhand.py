"""The jobs that this worker took from the queues and has not yet ended. Owned by the I/O thread."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from inference.protocol import PRIORITIES

MAX_REMEMBERED_CANCELS = 10_000


class Pulled(NamedTuple):
    """A job as the pull script hands it over."""

    job_id: str
    queue: str
    execution: str
    data: bytes
    enqueued_at: str


@dataclass(slots=True)
class Held:
    """One job in hand; a job that was enqueued twice has two executions."""

    queue: str
    executions: list[str]
    since: float
    rank: int = 0  # of its class; 0 is the most important
    reply_to: str | None = None
    streams: int = 1
    in_engine: bool = False
    cancelled: str | None = field(default=None)  # the reason


class InHand:
    """Jobs by id, and the room that is left for more.

    A class has the room that there would be without those of lower classes, which it overtakes in the engine; all of
    them together never take more than twice the capacity.
    """

    def __init__(self, max_streams: int) -> None:
        self.capacity = max_streams + max(1, max_streams // 8)
        self.room_made = asyncio.Event()
        self._jobs: dict[str, Held] = {}
        self._streams = [0] * len(PRIORITIES)  # by class
        # A cancel can overtake its job on the way here.
        self._cancelled_early: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[tuple[str, Held]]:
        return iter(list(self._jobs.items()))

    @property
    def streams(self) -> int:
        return sum(self._streams)

    @property
    def room(self) -> int:
        """Streams of any class that may still be pulled."""
        return self.capacity - self.streams

    def room_over(self, rank: int) -> int:
        """Streams of this class and those above it that may still be pulled, though the engine has lower ones."""
        return min(self.capacity - sum(self._streams[: rank + 1]), 2 * self.capacity - self.streams)

    def get(self, job_id: str) -> Held | None:
        return self._jobs.get(job_id)

    def take(self, job: Pulled, now: float) -> Held | None:
        """Hold a pulled job; None if it is in hand already, which then has one execution more."""
        held = self._jobs.get(job.job_id)
        if held is not None:
            if job.execution not in held.executions:
                held.executions.append(job.execution)
            return None
        held = Held(queue=job.queue, executions=[job.execution], since=now, rank=_rank(job.queue))
        held.cancelled = self._cancelled_early.pop(job.job_id, None)
        self._jobs[job.job_id] = held
        self._streams[held.rank] += held.streams
        return held

    def set_streams(self, held: Held, streams: int) -> None:
        """Now that the request is read: the sequences that it takes."""
        self._streams[held.rank] += streams - held.streams
        held.streams = streams

    def raise_class(self, held: Held) -> None:
        """Nobody overtakes it any more."""
        self._streams[held.rank] -= held.streams
        held.rank = 0
        self._streams[0] += held.streams

    def cancel(self, job_id: str, reason: str) -> Held | None:
        """Mark as cancelled; the job if it is in hand."""
        held = self._jobs.get(job_id)
        if held is not None:
            held.cancelled = held.cancelled or reason
            return held
        self._cancelled_early[job_id] = reason
        if len(self._cancelled_early) > MAX_REMEMBERED_CANCELS:
            self._cancelled_early.popitem(last=False)
        return None

    def release(self, job_id: str) -> Held | None:
        held = self._jobs.pop(job_id, None)
        if held is not None:
            self._streams[held.rank] -= held.streams
            self.room_made.set()
        return held


def _rank(queue: str) -> int:
    """Of a queue's class; what nobody knows is not overtaken."""
    priority = queue.rpartition(".")[2]
    return PRIORITIES.index(priority) if priority in PRIORITIES else 0
