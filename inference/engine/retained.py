"""Events kept for a gateway that missed some: all of running jobs, those of finished ones within bounds."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from inference.engine.messages import Event
from inference.protocol import DELTA, DONE, ERROR, KEEP_FINISHED_S

MAX_FINISHED_BYTES = 64 * 2**20


@dataclass(slots=True)
class _Job:
    events: list[Event] = field(default_factory=list)
    size_bytes: int = 0
    ended_at: float = 0.0


def estimated_bytes(event: Event) -> int:
    """About what an event takes in memory; counting exactly would cost more than it is worth."""
    if event[2] != DELTA:
        return 400
    logprobs = event[6]
    entries = sum(1 + len(entry["top"]) for entry in logprobs if entry) if logprobs else 0
    return 350 + 2 * len(event[4]) + 40 * len(event[5]) + 500 * entries


class Retained:
    """Events by job. Owned by the I/O thread.

    The events of running jobs are bounded by what the batch can hold; those of finished ones by
    KEEP_FINISHED_S and MAX_FINISHED_BYTES, oldest out first.
    """

    def __init__(self, *, keep_s: float = KEEP_FINISHED_S, max_bytes: int = MAX_FINISHED_BYTES) -> None:
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._running: dict[str, _Job] = {}
        self._finished: OrderedDict[str, _Job] = OrderedDict()
        self.finished_bytes = 0

    def add(self, event: Event, now: float) -> None:
        """Keep an event; the last one of a job starts the clock."""
        job_id: str = event[0]
        job = self._running.get(job_id)
        if job is None:
            self._forget_finished(job_id)
            job = self._running[job_id] = _Job()
        job.events.append(event)
        job.size_bytes += estimated_bytes(event)
        if event[2] in (DONE, ERROR):
            del self._running[job_id]
            job.ended_at = now
            self._finished[job_id] = job
            self.finished_bytes += job.size_bytes
            self.prune(now)

    def drop(self, job_id: str) -> None:
        """Forget a job that left without a last event: another replica will tell its story."""
        self._running.pop(job_id, None)

    def since(self, job_id: str, from_seq: int) -> list[Event] | None:
        """The job's events from a sequence number on; None if the job is unknown here."""
        job = self._running.get(job_id) or self._finished.get(job_id)
        return None if job is None else job.events[max(0, from_seq) :]

    def next_seq(self, job_id: str) -> int | None:
        """The sequence number that a running job's next event will have; None if it does not run here."""
        job = self._running.get(job_id)
        return None if job is None else len(job.events)

    def is_finished(self, job_id: str) -> bool:
        return job_id in self._finished

    def prune(self, now: float) -> None:
        """Forget what is too old or too much."""
        while self._finished:
            job_id, job = next(iter(self._finished.items()))
            if now - job.ended_at < self._keep_s and self.finished_bytes <= self._max_bytes:
                return
            self._forget_finished(job_id)

    def _forget_finished(self, job_id: str) -> None:
        job = self._finished.pop(job_id, None)
        if job is not None:
            self.finished_bytes -= job.size_bytes
