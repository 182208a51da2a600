"""Ends jobs in RQ's registries, a batch a call."""

from __future__ import annotations

import asyncio
import base64
import time
import zlib
from typing import Any, NamedTuple

import msgspec
import redis.asyncio

from inference.engine import rqkeys, scripts
from inference.engine.links import REDIS_TROUBLE, Patience
from inference.engine.messages import Ended, Outcome
from inference.protocol import bell_key

MAX_JOBS_A_CALL = 500
FIELDS_A_JOB = 8


class _Entry(NamedTuple):
    ended: Ended
    queue: str
    execution: str


class Bookkeeper:
    """Owned by the I/O thread. What waits is bounded by the jobs in hand: without Redis nothing is pulled."""

    def __init__(self, connection: redis.asyncio.Redis, *, worker: str, deployment: str) -> None:
        self._worker = worker
        self._worker_key = rqkeys.worker_key(worker)
        self._executions_key = rqkeys.worker_executions_key(worker)
        self._bell = bell_key(deployment)
        self._finish = connection.register_script(scripts.source("finish"))
        self._give_back = connection.register_script(scripts.source("give_back"))
        self._waiting: list[_Entry] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.busy = False  # the state that RQ's pages show once this batch is booked

    def put(self, ended: Ended, queue: str, executions: list[str]) -> None:
        """Queue the end of a job's executions; of several, only the last counts for the job."""
        self._waiting.extend(_Entry(ended, queue, execution) for execution in executions)
        self._idle.clear()
        self._wake.set()

    def waits_for(self, job_id: str, execution: str) -> bool:
        """Whether this execution is over, but not yet booked."""
        return any(entry.ended.job_id == job_id and entry.execution == execution for entry in self._waiting)

    async def run(self) -> None:
        patience = Patience("booking jobs")
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = self._waiting[:MAX_JOBS_A_CALL]
                try:
                    await self._book(batch)
                except REDIS_TROUBLE as error:
                    await patience.wait(error)
                    continue
                patience.succeeded()
                del self._waiting[: len(batch)]
            self._idle.set()

    async def flush(self) -> None:
        """Wait until nothing waits; the caller sets the deadline."""
        await self._idle.wait()

    async def _book(self, batch: list[_Entry]) -> None:
        back = [entry for entry in batch if entry.ended.outcome is Outcome.GIVEN_BACK]
        over = [entry for entry in batch if entry.ended.outcome is not Outcome.GIVEN_BACK]
        if over:
            now = time.time()
            args: list[Any] = [
                self._worker,
                rqkeys.stamp(now),
                now,
                rqkeys.RESULT_TTL_S,
                rqkeys.FAILURE_TTL_S,
                rqkeys.BLANK_DATA,
                "busy" if self.busy else "idle",
            ]
            for entry in over:
                args += _finish_fields(entry)
            await self._finish(keys=[self._worker_key, self._executions_key], args=args)
        if back:
            # Last in line first, because each goes to the head of its queue.
            args = [
                field
                for entry in reversed(back)
                for field in (entry.ended.job_id, entry.queue, entry.execution)
            ]
            await self._give_back(keys=[self._executions_key, self._bell], args=args)


def _finish_fields(entry: _Entry) -> list[Any]:
    """One job's FIELDS_A_JOB arguments of finish.lua."""
    ended = entry.ended
    result = error = error_text = b""
    if ended.usage is not None:
        result = base64.b64encode(msgspec.json.encode(ended.usage._asdict()))
    if ended.error is not None:
        error = zlib.compress(ended.error.encode(errors="replace"))
        error_text = base64.b64encode(error)
    return [
        ended.job_id,
        entry.queue,
        entry.execution,
        ended.outcome.value,
        f"{ended.worked_s:.6f}",
        result,
        error,
        error_text,
    ]
