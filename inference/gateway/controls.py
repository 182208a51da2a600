"""What the gateway says to replicas: cancel and resend, gathered into one message a replica."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from redis.exceptions import RedisError

from inference.protocol import control_channel

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 5.0


class Controls:
    """Outgoing control messages; its owner runs ``run()`` as a task.

    A message that cannot be sent is dropped: whoever still misses something asks again, and a replica that
    goes on with a cancelled job is told so again after its next event (see Hub).
    """

    def __init__(self, channel_layer: Any, reply_to: str) -> None:
        self._layer = channel_layer
        self._reply_to = reply_to
        self._cancels: dict[str, set[str]] = {}
        self._resends: dict[str, dict[str, int]] = {}
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()

    def cancel(self, replica: str, job_id: str) -> None:
        """Stop a job that a replica may have."""
        self._cancels.setdefault(replica, set()).add(job_id)
        self._wake.set()

    def resend(self, replica: str, job_id: str, from_seq: int) -> None:
        """Ask for a job's events from a sequence number on, and whether the replica has the job at all."""
        self._resends.setdefault(replica, {})[job_id] = from_seq
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Send what was asked for so far; it has been sent when this returns, whoever else is at it."""
        async with self._sending:
            cancels, self._cancels = self._cancels, {}
            resends, self._resends = self._resends, {}
            for replica, jobs in cancels.items():
                await self._send(replica, {"type": "engine.cancel", "jobs": sorted(jobs)})
            for replica, wanted in resends.items():
                jobs_from = [[job_id, from_seq] for job_id, from_seq in wanted.items()]
                await self._send(
                    replica, {"type": "engine.resend", "reply_to": self._reply_to, "jobs": jobs_from}
                )

    async def _send(self, replica: str, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._layer.send(control_channel(replica), message)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("cannot tell replica %s %s: %s", replica, message["type"], error)
