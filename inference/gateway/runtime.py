"""Everything that runs beside the requests of one gateway process, started and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from redis.exceptions import RedisError

from inference.gateway import metrics
from inference.gateway.admission import RENEW_LEASES_S, Admission
from inference.gateway.affinity import Affinity
from inference.gateway.auth import Authenticator
from inference.gateway.breaker_watch import BreakerWatch
from inference.gateway.config import GatewayConfig
from inference.gateway.controls import Controls
from inference.gateway.generation import Generator
from inference.gateway.hedging import Hedges
from inference.gateway.hub import Hub, keep_alive_key, receive_forever
from inference.gateway.ledger import LEASE_S, Reservation, SpendSource, nothing_spent
from inference.gateway.live import LiveState
from inference.gateway.mirror import Mirror
from inference.gateway.moving import Moving
from inference.gateway.recovery import Recovery
from inference.gateway.redis_batch import RedisBatch
from inference.gateway.settling import Settler
from inference.gateway.table_watch import TableWatch
from inference.gateway.tasks import cancel_all
from inference.gateway.token_counts import TokenCounts, TokenizerSource, no_tokenizers
from inference.protocol import GATEWAYS, HEARTBEAT_S, REVISIONS_KEY, gateway_key, revision_report
from inference.redis_client import redis_client
from mmserve.errors import ServerStopping, Unavailable
from routing.core.records import USAGE_LOST_KEY, USAGE_STREAM
from routing.core.table import RoutingTable

log = logging.getLogger(__name__)

START_WAIT_S = 5.0
RESTART_S = 1.0
STOP_S = 5.0
SETTLE_BEATS = 3
REPORT_S = 3.0
STOPPED_RETRY_S = 1.0
REFUSALS_EVERY_S = 1.0


class GatewayRuntime:
    """The hub, the live state, the table and the connections. ``start()`` needs a running event loop."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        channel_layer: Any,
        authenticator: Authenticator,
        table_source: Callable[[], Awaitable[RoutingTable]],
        revision_source: Callable[[], Awaitable[int]],
        spend_source: SpendSource = nothing_spent,
        tokenizer_source: TokenizerSource = no_tokenizers,
    ) -> None:
        self._spend_source = spend_source
        self._tokenizer_source = tokenizer_source
        self.config = config
        self.authenticator = authenticator
        self.live = LiveState()
        self.stopping = asyncio.Event()  # set for good: nothing new is taken
        self._layer = channel_layer
        self._table_source = table_source
        self._revision_source = revision_source
        self._tasks: list[asyncio.Task[None]] = []
        self._renewed_at = 0.0

    def start(self) -> None:
        """Begin; what needs Redis or the database waits for it in the background."""
        if self._tasks:
            return
        self.table = TableWatch(self.authenticator, self._table_source, self._revision_source)
        self.redis = redis_client(
            self.config.redis_url,
            socket_connect_timeout=self.config.redis_timeout_s,
            max_connections=16,
        )
        self._fast = RedisBatch(self.redis, timeout_s=self.config.redis_timeout_s)
        self._settler = Settler(self.redis, self.config)
        self.admission = Admission(
            self.redis, self.config, fast=self._fast, settler=self._settler, spend_source=self._spend_source
        )
        self.admission.ledgers.in_flight = self._in_flight
        self._counts = TokenCounts(self._tokenizer_source, self.config.tokenizer_bytes)
        self._connected = asyncio.Event()
        self._spawn("table", self.table.run)
        self._spawn("admission", self._fast.run)
        self._spawn("settlement", self._settler.run)
        self._tasks.append(asyncio.create_task(self._connect()))

    async def ready(self) -> Generator:
        """The generator, once replies are heard and the table is known; Unavailable if that takes long."""
        if not self.is_ready:
            try:
                async with asyncio.timeout(START_WAIT_S):
                    await self._connected.wait()
                    await self.table.loaded.wait()
            except TimeoutError:
                raise Unavailable(
                    f"The gateway is starting: {self.not_ready_why()}.", retry_after_s=1.0
                ) from None
        return self.generator

    @property
    def is_ready(self) -> bool:
        """Whether replies are heard and the table is known."""
        return bool(self._tasks) and self._connected.is_set() and self.table.loaded.is_set()

    def not_ready_why(self) -> str:
        """What is still missing, in words."""
        missing = []
        if not self._connected.is_set():
            missing.append("Redis cannot be reached")
        if not self.table.loaded.is_set():
            missing.append("the routing table is not loaded")
        return " and ".join(missing) or "nothing is missing"

    async def checks(self) -> dict[str, str]:
        """What /readyz tells: "ok" or why not, for the database, Redis and the routing table."""
        found = {"database": self.table.database_failure or "ok", "redis": "ok", "routing_table": "ok"}
        if self.stopping.is_set():
            found["gateway"] = "stopping"
        try:
            async with asyncio.timeout(1.0):
                await self.redis.ping()
            if not self._connected.is_set():
                found["redis"] = "the reply channel is not open yet"
        except (RedisError, OSError, TimeoutError) as error:
            found["redis"] = f"{type(error).__name__}: {error}"[:300]
        if not self.table.loaded.is_set():
            found["routing_table"] = "not loaded"
        return found

    def refuse_if_stopping(self) -> None:
        """Raise ServerStopping once the gateway has been told to stop."""
        if self.stopping.is_set():
            raise ServerStopping(
                "The server is stopping and takes no new requests.", retry_after_s=STOPPED_RETRY_S
            )

    async def cut(self) -> None:
        """End what is still in flight: its clients are told why, its engines to stop."""
        if not self._tasks or not self._connected.is_set():
            return
        await self.mirror.stop()
        await self.moving.close()
        await self.hedges.close()
        for flight in self.hub:
            flight.mover = None
            flight.fail(
                ServerStopping(
                    "The server is stopping: it could not wait until this was finished.",
                    retry_after_s=STOPPED_RETRY_S,
                )
            )
            if flight.replica is not None:
                self.controls.cancel(flight.replica, flight.job_id)

    async def stop(self) -> None:
        """Cut what is still in flight, settle, close."""
        if not self._tasks:
            return
        await self.cut()
        if self._connected.is_set():
            try:
                async with asyncio.timeout(STOP_S):
                    await self.controls.flush()
                    await self.redis.delete(gateway_key(self._channel))
                    await self.redis.hdel(REVISIONS_KEY, self._process)
                    await self.breakers.say_goodbye()
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("could not say good-bye to Redis: %s", error)
        await cancel_all(self._tasks)
        self._tasks.clear()
        await self._counts.close()
        if self._connected.is_set():
            await self.hedges.close()  # of those that were cut
            self.generator.flush_refusals()
        await self._settler.drain()
        await self.redis.aclose()

    async def _connect(self) -> None:
        """Open the reply channel, however long Redis takes to come."""
        while True:
            try:
                async with asyncio.timeout(START_WAIT_S):
                    self._channel: str = await self._layer.new_channel()
                    await self._layer.group_add(GATEWAYS, self._channel)
                break
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("the reply channel cannot be opened yet: %s", error)
                await asyncio.sleep(RESTART_S)
        self.controls = Controls(self._layer, self._channel)
        self.affinity = Affinity(self.live, self.config)
        self.hub = Hub(self.live, self.controls, self.table.push, self.affinity)
        self.generator = Generator(
            config=self.config,
            table=self.table.current,
            live=self.live,
            hub=self.hub,
            affinity=self.affinity,
            admission=self.admission,
            controls=self.controls,
            counts=self._counts,
            reply_to=self._channel,
        )
        self.mirror = Mirror(self.generator, self.table.current, self.live, self.redis)
        self.moving = Moving(self.hub, self.generator)
        self.hedges = Hedges(self.hub, self.generator)
        self.breakers = BreakerWatch(
            self.generator.experience,
            self.table.current,
            self.redis,
            process=self._process,
            redis_timeout_s=self.config.redis_timeout_s,
        )
        recovery = Recovery(
            self.hub, self.live, self.admission, self.controls, self.config, self.table.current
        )
        self._spawn("receive", lambda: receive_forever(self._layer, self._channel, self.hub.dispatch))
        self._spawn("controls", self.controls.run)
        self._spawn("recovery", recovery.run)
        self._spawn("breakers", self.breakers.run)
        self._spawn("refusals", self._flush_refusals)
        self._spawn("revision", self._report_revision)
        self._spawn("liveness", lambda: keep_alive_key(self.redis, self._channel, self._renew_leases))
        self._connected.set()
        await asyncio.sleep(SETTLE_BEATS * HEARTBEAT_S)
        self.live.settle()

    async def _flush_refusals(self) -> None:
        while True:
            await asyncio.sleep(REFUSALS_EVERY_S)
            self.generator.flush_refusals()
            with contextlib.suppress(RedisError, OSError):
                metrics.usage_waiting.set(await self.redis.xlen(USAGE_STREAM))
                metrics.usage_lost.set(int(await self.redis.get(USAGE_LOST_KEY) or 0))

    @property
    def _process(self) -> str:
        return f"gateway {self._channel[-8:]}"

    async def _report_revision(self) -> None:
        """Say which configuration this process runs: at once when a new one is in use, and every few seconds."""
        while True:
            self.table.applied.clear()
            if self.table.revision is not None:
                try:
                    async with asyncio.timeout(self.config.redis_timeout_s):
                        line = revision_report(self.table.revision, time.time())
                        await self.redis.hset(REVISIONS_KEY, self._process, line)
                except (RedisError, OSError, TimeoutError) as error:
                    log.warning("cannot report the revision: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_S):
                    await self.table.applied.wait()

    def _in_flight(self) -> list[Reservation]:
        return [one for flight in self.hub for one in flight.reservations]

    async def _renew_leases(self, forgotten: bool) -> None:
        now = time.monotonic()
        if now - self._renewed_at < RENEW_LEASES_S and not forgotten:
            return
        self._renewed_at = now
        leases: dict[str, list[str]] = {}
        for flight in self.hub:
            if flight.grant.max_concurrency is not None:
                leases.setdefault(flight.grant.id, []).append(flight.request.request_id)
        if leases:
            await self.admission.renew(leases, time.time(), forgotten=forgotten)
        await self.admission.ledgers.renew(self._in_flight(), LEASE_S)

    def _spawn(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.append(asyncio.create_task(_supervised(name, work), name=f"gateway-{name}"))


async def _supervised(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A background task that fails is a bug: it is logged, and begun again, because requests depend on it."""
    while True:
        try:
            await work()
            return
        except Exception:
            log.exception("the gateway's %s task failed; it begins again", name)
            await asyncio.sleep(RESTART_S)
