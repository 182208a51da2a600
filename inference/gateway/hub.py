"""The reply hub: one Channels channel a gateway process, one receiving loop, all flights by job id."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from redis.exceptions import RedisError

from inference.gateway.affinity import Affinity
from inference.gateway.controls import Controls
from inference.gateway.flight import SILENCE_S, Flight
from inference.gateway.live import LiveState
from inference.protocol import ACCEPTED, DELTA, GATEWAY_TTL_S, gateway_key

log = logging.getLogger(__name__)

GAP_PROBE_S = 0.25


class Hub:
    """Hands events to flights, each exactly once and in order; what is missing is asked for again."""

    def __init__(
        self,
        live: LiveState,
        controls: Controls,
        on_revision: Callable[[int], None],
        affinity: Affinity,
    ) -> None:
        self._affinity = affinity
        self._live = live
        self._controls = controls
        self._on_revision = on_revision
        self._flights: dict[str, Flight] = {}
        self._told: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._flights.values()))

    def add(self, flight: Flight) -> None:
        """Take events of the flight's present job from now on."""
        self._flights[flight.job_id] = flight

    def remove(self, flight: Flight) -> None:
        """Take no more events of the flight's present job."""
        self._affinity.left(flight)
        self._flights.pop(flight.job_id, None)

    def dispatch(self, message: dict[str, Any]) -> None:
        """One message from the Channels layer."""
        kind = message.get("type")
        now = time.monotonic()
        if kind == "engine.events":
            self._events(message, now)
        elif kind == "replica.beat":
            self._live.beat({key: value for key, value in message.items() if key != "type"}, now)
        elif kind == "replica.lost":
            self._live.lost(message["replica"])
        elif kind == "deployments.outlook":
            self._live.foresee(message["deployments"], now)
        elif kind == "config.revision":
            self._on_revision(message["revision"])
        else:
            log.warning("a message of an unknown type arrived: %r", kind)

    def _events(self, message: dict[str, Any], now: float) -> None:
        replica = message["replica"]
        if self._live.is_fenced(replica):
            return
        flights = self._flights
        for event in message["events"]:
            flight = flights.get(event[0])
            if flight is None:
                self._stray(event, replica, now)
            elif event[1] == flight.next_seq and (flight.replica is None or flight.replica == replica):
                flight.take(event, replica, now)
                if event[1] == 0:
                    self._begun(flight, event, replica)
            else:
                self._out_of_order(flight, event, replica, now)
        for job_id, next_seq in message.get("alive", ()):
            flight = flights.get(job_id)
            if flight is not None and not flight.recovering:
                flight.heard_at = now
                flight.missing = False
                if next_seq > flight.next_seq and flight.replica == replica:
                    self._ask(flight, replica, now)
        for job_id in message.get("unknown", ()):
            flight = flights.get(job_id)
            # What a replica said before it took the job may arrive after its acceptance.
            if flight is not None and (not flight.accepted or now - flight.heard_at > SILENCE_S):
                flight.unknown_to.add(replica)

    def _begun(self, flight: Flight, event: list[Any], replica: str) -> None:
        if event[2] == ACCEPTED:
            self._affinity.accepted(flight, replica)

    def _out_of_order(self, flight: Flight, event: list[Any], replica: str, now: float) -> None:
        if flight.replica is not None and flight.replica != replica:
            # A job that its first engine gave back has begun again in another one; nothing was made before.
            if event[1] == 0 and event[2] == ACCEPTED and flight.next_seq == 1:
                flight.next_seq = 0
                flight.take(event, replica, now)
                self._begun(flight, event, replica)
            else:
                self._controls.cancel(replica, flight.job_id)
        elif event[1] > flight.next_seq:
            self._ask(flight, replica, now)

    def _ask(self, flight: Flight, replica: str, now: float) -> None:
        if now - flight.probe_at > GAP_PROBE_S:
            flight.probe_at = now
            self._controls.resend(replica, flight.job_id, flight.next_seq)

    def _stray(self, event: list[Any], replica: str, now: float) -> None:
        """An engine works for nobody: its client left, or another attempt took over. Tell it so."""
        working = event[2] == ACCEPTED or (event[2] == DELTA and event[7] is None)
        if working and now - self._told.get(event[0], 0.0) > 1.0:
            if len(self._told) > 10_000:
                self._told.clear()
            self._told[event[0]] = now
            self._controls.cancel(replica, event[0])


async def receive_forever(
    channel_layer: Any, channel: str, dispatch: Callable[[dict[str, Any]], None]
) -> None:
    """The receiving loop. A message that makes trouble is logged and skipped: it must not end all answers."""
    while True:
        message = await channel_layer.receive(channel)
        try:
            dispatch(message)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            log.exception("a message of type %r could not be understood", message.get("type"))


async def keep_alive_key(redis: Any, channel: str, renew: Callable[[bool], Awaitable[None]]) -> None:
    """Say each second that this gateway lives: engines give up the jobs of one that does not.

    ``renew`` hears whether Redis has forgotten it since: then it has forgotten what was held as well.
    """
    known = False
    while True:
        try:
            async with asyncio.timeout(GATEWAY_TTL_S):
                before = await redis.set(gateway_key(channel), "1", ex=GATEWAY_TTL_S, get=True)
                await renew(known and before is None)
                known = True
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("cannot renew this gateway's key: %s", error)
        await asyncio.sleep(1.0)
