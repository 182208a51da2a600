"""Sends events: one Channels message a gateway, merged with whatever waits while a send is in flight."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from inference.engine.links import REDIS_TROUBLE, Patience
from inference.engine.messages import Event

MAX_EVENTS_A_MESSAGE = 4_096
MAX_WAITING_EVENTS = 100_000

logger = logging.getLogger(__name__)


class Sender:
    """Owned by the I/O thread. What is dropped for want of room, a gateway fetches by ``engine.resend``."""

    def __init__(self, replica: str, send: Callable[[str, dict[str, Any]], Awaitable[None]]) -> None:
        self._replica = replica
        self._send = send
        self._waiting: dict[str, list[Event]] = {}
        self._count = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, channel: str, events: list[Event]) -> None:
        """Queue events for a gateway, in order."""
        waiting = self._waiting.get(channel)
        if waiting is None:
            self._waiting[channel] = list(events)
        else:
            waiting.extend(events)
        self._count += len(events)
        if self._count > MAX_WAITING_EVENTS:
            self._make_room()
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        patience = Patience("sending events")
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                channel = next(iter(self._waiting))
                events = self._waiting[channel][:MAX_EVENTS_A_MESSAGE]
                try:
                    await self._send(
                        channel, {"type": "engine.events", "replica": self._replica, "events": events}
                    )
                except REDIS_TROUBLE as error:
                    await patience.wait(error)
                    continue
                patience.succeeded()
                self._sent(channel, events)
            self._idle.set()

    async def flush(self) -> None:
        """Wait until nothing waits; the caller sets the deadline."""
        await self._idle.wait()

    def _sent(self, channel: str, events: list[Event]) -> None:
        waiting = self._waiting.pop(channel)
        # What came meanwhile goes last, so that one talkative gateway does not starve the others.
        if len(waiting) > len(events):
            self._waiting[channel] = waiting[len(events) :]
        self._count -= len(events)

    def _make_room(self) -> None:
        channel = max(self._waiting, key=lambda name: len(self._waiting[name]))
        dropped = self._waiting[channel]
        # The first message may be in flight, so its events stay; the gateway sees the gap and asks again.
        keep = dropped[:MAX_EVENTS_A_MESSAGE] + dropped[-MAX_EVENTS_A_MESSAGE:]
        if len(keep) < len(dropped):
            logger.warning("dropped %d events that waited for %s", len(dropped) - len(keep), channel)
            self._count -= len(dropped) - len(keep)
            self._waiting[channel] = keep
