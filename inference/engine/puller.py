"""Takes jobs from a deployment's queues while there is room: that replicas pull is the load balancing.

One that is full still takes jobs of a higher class than some that it has, for they overtake those in the engine. It
looks for them now and then and takes what was there at two looks: who has room is woken by the bell, and is sooner.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis.asyncio

from inference.engine import rqkeys, scripts
from inference.engine.bookkeeper import Bookkeeper
from inference.engine.inhand import InHand, Pulled
from inference.engine.links import REDIS_TROUBLE, Patience
from inference.protocol import bell_key, fence_key, own_bell_key

MAX_JOBS_A_PULL = 128
# A stock RQ enqueue does not ring the bell, so the queues are looked at this often anyway.
BELL_TIMEOUT_S = 1.0
# A job that has waited for so long goes before those of higher classes, now and then.
AGED_AFTER_S = 30.0
# Between two looks of a full one.
LOOK_S = 0.05

logger = logging.getLogger(__name__)


class Puller:
    """Owned by the I/O thread."""

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        *,
        replica: str,
        worker: str,
        deployment: str,
        inhand: InHand,
        bookkeeper: Bookkeeper,
        take: Callable[[Pulled], None],
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._queues = rqkeys.deployment_queues(deployment)
        self._replica = replica
        self._bell = bell_key(deployment)
        self._own_bell = own_bell_key(deployment, replica)
        self._executions_key = rqkeys.worker_executions_key(worker)
        self._lists = [rqkeys.queue_key(queue) for queue in self._queues]
        self._keys = [
            self._bell,
            rqkeys.worker_key(worker),
            self._executions_key,
            fence_key(replica),
        ]
        self._script = connection.register_script(scripts.source("pull"))
        self._inhand = inhand
        self._bookkeeper = bookkeeper
        self._take = take
        self._seen: set[int] = set()  # the ranks of which some waited at the last look

    async def run(self) -> None:
        patience = Patience("pulling jobs")
        lost_a_reply = False
        while True:
            try:
                if lost_a_reply:
                    await self._adopt()
                    lost_a_reply = False
                if self._inhand.room <= 0:
                    await self._while_full()
                else:
                    await self._while_room()
            except REDIS_TROUBLE as error:
                lost_a_reply = True
                await patience.wait(error)
            else:
                patience.succeeded()

    async def _while_room(self) -> None:
        """Pull; if nothing is left, wait for the bell."""
        self._seen.clear()
        left, wait_s = await self._pull(self._inhand.room, len(self._queues))
        if not left and self._inhand.room > 0:
            await self._connection.blpop([self._own_bell, self._bell], timeout=wait_s)

    async def _while_full(self) -> None:
        """Wait for room, or until there is somebody who need not."""
        self._inhand.room_made.clear()
        ranks = [rank for rank in range(len(self._queues) - 1) if self._inhand.room_over(rank) > 0]
        if not ranks:
            await self._inhand.room_made.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._inhand.room_made.wait()
            return
        waiting = {rank for rank in ranks if await self._connection.llen(self._lists[rank])}
        for rank in sorted(waiting & self._seen):
            if (room := self._inhand.room_over(rank)) > 0:
                await self._pull(room, rank + 1)
        self._seen = waiting

    async def _pull(self, most: int, classes: int) -> tuple[int, float]:
        """Pull up to this many jobs of so many classes, the highest first.

        Returns how many wait still for this replica, and after how long to look again.
        """
        now = time.time()
        is_of_all = classes == len(self._queues)
        args: list[int | float | str] = [
            min(most, MAX_JOBS_A_PULL),
            self._worker,
            rqkeys.stamp(now),
            now,
            rqkeys.EXECUTION_TTL_S,
            uuid.uuid4().hex[:24],
            rqkeys.stamp(now - AGED_AFTER_S) if is_of_all else "",
            self._replica,
            *self._queues[:classes],
        ]
        left, held_ms, *jobs = await self._script(keys=[*self._lists[:classes], *self._keys], args=args)
        for job in jobs:
            self._take_row(job)
        return int(left), min(BELL_TIMEOUT_S, int(held_ms) / 1000) or BELL_TIMEOUT_S

    async def _adopt(self) -> None:
        """Take over jobs that a pull had moved to this worker when its reply was lost."""
        members: set[bytes] = await self._connection.smembers(self._executions_key)
        for member in members:
            job_id, _, execution = member.decode().rpartition(":")
            held = self._inhand.get(job_id)
            if (held and execution in held.executions) or self._bookkeeper.waits_for(job_id, execution):
                continue
            job = await self._connection.hmget(rqkeys.job_key(job_id), ["origin", "data", "enqueued_at"])
            if job[0] is not None and job[1] is not None:
                self._take_row([job_id.encode(), job[0], execution.encode(), job[1], job[2] or b""])

    def _take_row(self, row: list[Any]) -> None:
        try:
            job = Pulled(row[0].decode(), row[1].decode(), row[2].decode(), row[3], row[4].decode())
        except UnicodeDecodeError:
            # Nothing of ours makes such an id. It expires as abandoned; nobody can be told.
            logger.error("a job was pulled whose id or queue is not UTF-8")
            return
        self._take(job)
