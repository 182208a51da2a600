"""Takes jobs from a deployment's queues while there is room: that replicas pull is the load balancing."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
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
        self._keys = [
            *map(rqkeys.queue_key, self._queues),
            self._bell,
            rqkeys.worker_key(worker),
            self._executions_key,
            fence_key(replica),
        ]
        self._script = connection.register_script(scripts.source("pull"))
        self._inhand = inhand
        self._bookkeeper = bookkeeper
        self._take = take

    async def run(self) -> None:
        patience = Patience("pulling jobs")
        lost_a_reply = False
        while True:
            if self._inhand.room <= 0:
                self._inhand.room_made.clear()
                await self._inhand.room_made.wait()
                continue
            try:
                if lost_a_reply:
                    await self._adopt()
                    lost_a_reply = False
                left, wait_s = await self._pull(min(self._inhand.room, MAX_JOBS_A_PULL))
                if not left and self._inhand.room > 0:
                    await self._connection.blpop([self._own_bell, self._bell], timeout=wait_s)
            except REDIS_TROUBLE as error:
                lost_a_reply = True
                await patience.wait(error)
            else:
                patience.succeeded()

    async def _pull(self, most: int) -> tuple[int, float]:
        """Pull up to this many jobs; how many wait still for this replica, and after how long to look again."""
        now = time.time()
        args: list[int | float | str] = [
            most,
            self._worker,
            rqkeys.stamp(now),
            now,
            rqkeys.EXECUTION_TTL_S,
            uuid.uuid4().hex[:24],
            rqkeys.stamp(now - AGED_AFTER_S),
            self._replica,
        ]
        left, held_ms, *jobs = await self._script(keys=self._keys, args=[*args, *self._queues])
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
