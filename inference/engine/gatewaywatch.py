"""Notices that a gateway is gone, so that nothing is generated for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import redis.asyncio

from inference.engine.inhand import InHand
from inference.engine.links import REDIS_TROUBLE, Patience
from inference.protocol import gateway_key

EVERY_S = 1.0
MISSES = 3  # in a row, while Redis answers


class GatewayWatch:
    """Owned by the I/O thread."""

    def __init__(
        self, connection: redis.asyncio.Redis, inhand: InHand, cancel: Callable[[str, str], None]
    ) -> None:
        self._connection = connection
        self._inhand = inhand
        self._cancel = cancel
        self._misses: dict[str, int] = {}

    async def run(self) -> None:
        patience = Patience("looking for gateways")
        while True:
            try:
                await self.look()
            except REDIS_TROUBLE as error:
                # A Redis that was away may have lost the gateways' signs of life: they start afresh.
                self._misses.clear()
                await patience.wait(error)
            else:
                patience.succeeded()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Check the gateway of every job in hand once."""
        jobs: dict[str, list[str]] = {}
        for job_id, held in self._inhand:
            if held.reply_to and not held.cancelled:
                jobs.setdefault(held.reply_to, []).append(job_id)
        channels = list(jobs)
        alive = (
            await self._connection.mget([gateway_key(channel) for channel in channels]) if channels else []
        )
        misses = {
            channel: self._misses.get(channel, 0) + 1
            for channel, sign in zip(channels, alive, strict=True)
            if sign is None
        }
        for channel, count in misses.items():
            if count >= MISSES:
                for job_id in jobs[channel]:
                    self._cancel(job_id, "its gateway is gone")
        self._misses = misses
