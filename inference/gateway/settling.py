"""Settlements on their way to Redis: in their order, each until Redis has taken it, many in one round trip.

Nobody waits for them, so what comes while some are on their way goes together, and a budget's ledger is read and
written once for all of them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from inference.gateway.config import GatewayConfig
from inference.gateway.redis_batch import Script
from routing.core.cost import HELD_KEY, LEDGERS_KEY, NOBODY_PAYS
from routing.core.records import DECISIONS_KEY, USAGE_LOST_KEY, USAGE_STREAM

log = logging.getLogger(__name__)

MOST_AT_ONCE = 256
MOST_WAITING = 20_000
AGAIN_S = 0.25
# Said by a server that cannot take a script now, and may later: full, with a full disk, or busy. What a script
# meets inside comes as a text.
PASSING = ("OOM", "maxmemory", "READONLY", "read only", "MISCONF", "BUSY", "MASTERDOWN", "NOREPLICAS")

NOBODY = msgspec.Raw(NOBODY_PAYS.told(0.0))

_encode = msgspec.msgpack.Encoder().encode


class Settlement(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What settle.lua is told of one request; what is empty is left alone. Redis' MessagePack knows no binary."""

    rate_key: str = ""
    lease_key: str = ""
    lease_member: str = ""
    tokens_per_minute: int = 0
    reserved_tokens: int = 0
    used_tokens: int = 0
    record: str = ""  # JSON for the usage stream
    cost_nano: int = 0
    payers: msgspec.Raw = NOBODY  # Payers.told
    # Of what was held for it: the member of the zset, nano-dollars, and the places of its budgets.
    held: list[tuple[str, int, list[str]]] = []
    decision_id: str = ""
    decision: str = ""  # JSON


class Settler:
    """Sends what is posted; its owner starts it with ``run()`` as a task."""

    def __init__(self, redis: Redis, config: GatewayConfig) -> None:
        self._redis = redis
        self._config = config
        self._script = Script("settle")
        self._settled_key = f"mmserve:settled:{secrets.token_hex(8)}"
        self._number = 0
        self._waiting: deque[Settlement] = deque()
        # What is on its way, and how many that are: sent again as it is.
        self._sending: tuple[tuple[Any, ...], int] | None = None
        self._wake = asyncio.Event()
        self.lost = self.refused = 0

    def post(self, settlement: Settlement) -> None:
        """Have it settled soon. Of too many that wait, the oldest are lost."""
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self._lose(1, "too many wait")
        self._waiting.append(settlement)
        self._wake.set()

    @property
    def idle(self) -> bool:
        """Whether all that was posted has arrived."""
        return self._sending is None and not self._waiting

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while not self.idle:
                if not await self._send():
                    await asyncio.sleep(AGAIN_S)

    async def drain(self) -> None:
        """Send what is left, once; for the end of the process, after ``run()`` was cancelled."""
        while not self.idle:
            if not await self._send():
                self._give_up("the gateway stops")

    async def _send(self) -> bool:
        """Send the next ones, or the last ones again; False when they did not arrive."""
        if self._sending is None:
            together = [self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))]
            self._number += 1
            self._sending = self._arguments(together), len(together)
        arguments, _ = self._sending
        try:
            async with asyncio.timeout(self._config.redis_timeout_s):
                try:
                    await self._redis.execute_command("EVALSHA", self._script.sha, *arguments)
                except NoScriptError:  # a Redis that was restarted knows no scripts
                    await self._redis.execute_command("EVAL", self._script.source, *arguments)
        except (RedisError, OSError, TimeoutError) as error:
            self._refused(error)
            return False
        self._sending = None
        return True

    def _arguments(self, together: list[Settlement]) -> tuple[Any, ...]:
        config = self._config
        keys = (USAGE_STREAM, self._settled_key, USAGE_LOST_KEY, DECISIONS_KEY, LEDGERS_KEY, HELD_KEY)
        bounds = (config.usage_maxlen, config.decisions_kept_s, config.decisions_kept)
        return (len(keys), *keys, self._number, _encode(together), *bounds, time.time())

    def _refused(self, error: Exception) -> None:
        if isinstance(error, ResponseError) and not any(word in str(error) for word in PASSING):
            self._give_up(str(error))
            return
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # at 1, 2, 4, 8, …
            log.warning("settlements wait for Redis: %s", error)

    def _give_up(self, why: str) -> None:
        if self._sending is not None:
            self._lose(self._sending[1], why)
            self._sending = None

    def _lose(self, count: int, why: str) -> None:
        before, self.lost = self.lost, self.lost + count
        if before.bit_length() != self.lost.bit_length():  # at 1, 2, 4, 8, …
            log.error("%d settlements were not run in Redis: %s", self.lost, why)
