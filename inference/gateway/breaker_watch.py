"""The circuit breakers of this process by the clock: tried again when their time is over, and told to whoever asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from inference.gateway.experience import Experience
from mmserve.errors import Unavailable
from routing.core.records import BREAKERS_KEY, BreakerReport
from routing.core.table import RoutingTable

log = logging.getLogger(__name__)

SWEEP_S = 0.25
# What has not changed is said again this often.
REPORT_S = 3.0


class BreakerWatch:
    """Of one gateway process. Started and cancelled by the runtime."""

    def __init__(
        self,
        experience: Experience,
        table: Callable[[], RoutingTable],
        redis: Redis,
        *,
        process: str,
        redis_timeout_s: float,
    ) -> None:
        self._experience = experience
        self._table = table
        self._redis = redis
        self._process = process
        self._redis_timeout_s = redis_timeout_s

    async def run(self) -> None:
        """Sweep until cancelled; report what has changed, and every REPORT_S."""
        told, told_at = -1, float("-inf")
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            self._experience.sweep(now)
            changes = self._experience.changes
            if changes != told or now - told_at >= REPORT_S:
                told_at = now
                if await self._report():
                    told = changes

    async def _report(self) -> bool:
        try:
            async with asyncio.timeout(self._redis_timeout_s):
                await self._redis.hset(BREAKERS_KEY, self._process, msgspec.json.encode(self.report()))
        except (RedisError, OSError, TimeoutError, Unavailable) as error:
            log.warning("cannot report the circuit breakers: %s", error)
            return False
        return True

    def report(self) -> BreakerReport:
        """As it is now; of a deployment that is gone from the table nobody asks any more."""
        deployments = self._table().deployments
        return BreakerReport(
            at=time.time(),
            states={
                name: (deployments[name].served_id, state)
                for name, state in self._experience.states().items()
                if name in deployments
            },
        )

    async def say_goodbye(self) -> None:
        """Nobody is to count on this process any more."""
        await self._redis.hdel(BREAKERS_KEY, self._process)
