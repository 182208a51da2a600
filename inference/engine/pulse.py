"""The replica's heartbeat: to the gateways, to Redis, and to RQ's worker and execution records."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import msgspec
import psutil
import redis.asyncio
from channels_redis.pubsub import RedisPubSubChannelLayer

from inference.engine import rqkeys
from inference.engine.fence import leave
from inference.engine.inhand import InHand
from inference.engine.links import REDIS_TROUBLE, Patience
from inference.protocol import GATEWAYS, HEARTBEAT_S, STALE_AFTER_S, ReplicaBeat, beat_key, fence_key

WORKER_TTL_S = 90
EXECUTIONS_EVERY_S = 15.0


class Pulse:
    """Owned by the I/O thread."""

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        layer: RedisPubSubChannelLayer,
        *,
        worker: str,
        deployment: str,
        inhand: InHand,
        read_beat: Callable[[float], ReplicaBeat],
        worker_record: Callable[[], dict[str, str]],
    ) -> None:
        self._connection = connection
        self._layer = layer
        self._worker = worker
        self._queues = rqkeys.deployment_queues(deployment)
        self._inhand = inhand
        self._read_beat = read_beat
        self._worker_record = worker_record
        self._process = psutil.Process(os.getpid())
        self._executions_due = 0.0

    async def run(self) -> None:
        patience = Patience("heartbeat")
        while True:
            try:
                await self.beat()
            except REDIS_TROUBLE as error:
                await patience.wait(error)
                continue
            patience.succeeded()
            await asyncio.sleep(HEARTBEAT_S)

    async def beat(self) -> None:
        """Tell the load once, everywhere."""
        now = time.time()
        beat = self._read_beat(now)
        beat.rss_bytes = self._process.memory_info().rss
        pipeline = self._connection.pipeline(transaction=False)
        pipeline.exists(fence_key(beat.replica))
        pipeline.set(beat_key(beat.replica), msgspec.json.encode(beat), px=int(STALE_AFTER_S * 1000))
        self._refresh_worker(pipeline, now)
        if now >= self._executions_due:
            self._refresh_executions(pipeline, now)
            self._executions_due = now + EXECUTIONS_EVERY_S
        fenced, *_ = await pipeline.execute()
        if fenced:
            leave(beat.replica)
        await self._layer.group_send(GATEWAYS, {"type": "replica.beat", **msgspec.structs.asdict(beat)})

    def _refresh_worker(self, pipeline: redis.asyncio.client.Pipeline, now: float) -> None:
        """The whole record each time: a Redis that lost its memory learns it again."""
        record = dict(self._worker_record())
        if not record:
            return  # not registered yet, or not any more
        key = rqkeys.worker_key(self._worker)
        record["last_heartbeat"] = rqkeys.stamp(now)
        pipeline.hset(key, mapping=record)  # type: ignore[arg-type]
        pipeline.hsetnx(key, "state", "idle")
        pipeline.expire(key, WORKER_TTL_S)
        pipeline.sadd("rq:workers", key)
        for queue in self._queues:
            pipeline.sadd(f"rq:workers:{queue}", key)
            pipeline.sadd("rq:queues", rqkeys.queue_key(queue))

    def _refresh_executions(self, pipeline: redis.asyncio.client.Pipeline, now: float) -> None:
        expires = now + rqkeys.EXECUTION_TTL_S
        for job_id, held in self._inhand:
            for execution in held.executions:
                composite = f"{job_id}:{execution}"
                pipeline.hset(f"rq:execution:{composite}", "last_heartbeat", str(now))
                pipeline.expire(f"rq:execution:{composite}", rqkeys.EXECUTION_TTL_S)
                pipeline.zadd(rqkeys.wip_key(held.queue), {composite: expires}, xx=True)
                pipeline.zadd(f"rq:executions:{job_id}", {execution: expires + 60}, xx=True)
                pipeline.expire(f"rq:executions:{job_id}", rqkeys.EXECUTION_TTL_S + 60)
        pipeline.expire(rqkeys.worker_executions_key(self._worker), rqkeys.EXECUTION_TTL_S + 60)
