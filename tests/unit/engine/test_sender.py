"""Sending events, merged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from inference.engine import sender as module
from inference.engine.sender import Sender


class Gate:
    """A channel layer whose sends wait until they are let through."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[Any]]] = []
        self.sending = asyncio.Event()
        self.open = asyncio.Event()
        self.trouble: list[Exception] = []

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        self.sending.set()
        await self.open.wait()
        if self.trouble:
            raise self.trouble.pop()
        self.sent.append((channel, message["events"]))


async def test_what_comes_while_a_send_is_in_flight_goes_in_one_message() -> None:
    gate = Gate()
    sender = Sender("r", gate.send)
    running = asyncio.create_task(sender.run())
    sender.put("a", [["j", 0]])
    await gate.sending.wait()
    for seq in range(1, 5):
        sender.put("a", [["j", seq]])
    gate.open.set()
    await asyncio.wait_for(sender.flush(), 5)
    running.cancel()
    assert gate.sent == [("a", [["j", 0]]), ("a", [["j", 1], ["j", 2], ["j", 3], ["j", 4]])]


async def test_events_outlive_a_redis_that_is_away() -> None:
    gate = Gate()
    gate.open.set()
    gate.trouble = [redis.ConnectionError("gone"), OSError("gone")]
    sender = Sender("r", gate.send)
    running = asyncio.create_task(sender.run())
    sender.put("a", [["j", 0]])
    sender.put("b", [["k", 0]])
    await asyncio.wait_for(sender.flush(), 5)
    running.cancel()
    assert sorted(gate.sent) == [("a", [["j", 0]]), ("b", [["k", 0]])]


async def test_what_waits_is_bounded_and_keeps_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_EVENTS", 50)
    monkeypatch.setattr(module, "MAX_EVENTS_A_MESSAGE", 10)
    gate = Gate()
    sender = Sender("r", gate.send)
    for seq in range(200):
        sender.put("a", [["j", seq]])
    gate.open.set()
    running = asyncio.create_task(sender.run())
    await asyncio.wait_for(sender.flush(), 5)
    running.cancel()
    sent = [event[1] for _, events in gate.sent for event in events]
    assert len(sent) <= 50
    assert sent == sorted(sent)
    assert sent[-1] == 199
