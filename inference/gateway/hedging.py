"""A second attempt beside a first one that is slow: whoever has the first token answers, the other one is ended.

Source: hedged requests (Dean and Barroso, The Tail at Scale, 2013): the second is sent when the first has taken longer
than the 95th percentile of what was expected, and only for a small share of all requests.
"""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from inference.gateway import metrics
from inference.gateway.admission import Refused
from inference.gateway.fallback import cause_of
from inference.gateway.flight import GONE, IDLE, RESTARTED, STATUS, Flight
from inference.gateway.generation import HEDGED, Generation, Generator
from inference.gateway.hub import Hub
from inference.gateway.tasks import cancel_all
from mmserve.errors import MmserveError
from routing.core.breaker import State
from routing.core.decision import Link
from routing.core.records import AttemptRecord

log = logging.getLogger(__name__)

# What a route may have saved up: so many hedges at once.
MOST_CREDIT = 10.0
# While the first attempt is being looked for, the second waits with its token.
AGAIN_S = 0.02


class Hedges:
    """Of one gateway process, owned by its event loop. Closed by the runtime."""

    def __init__(self, hub: Hub, generator: Generator) -> None:
        self.hub = hub
        self.generator = generator
        self._credit: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        generator.on_admitted = self.consider

    def consider(self, generation: Generation) -> None:
        """Watch an admitted request of a route that hedges; each adds its share of one more attempt."""
        route = generation.table.routes.get(generation.route)
        if route is None or not route.hedge_share:
            return
        self._credit[route.id] = min(MOST_CREDIT, self._credit.get(route.id, 0.0) + route.hedge_share)
        # A unit of an experiment is served by its arm.
        if generation.assignments or not generation.rest:
            return
        flight = generation.flight
        slow_s = self.generator.experience.slow_after_s(flight.deployment.id, flight.expected_s)
        if slow_s is not None:
            generation.hedge = Hedge(self, generation, slow_s - (time.monotonic() - flight.begun_at))

    def pay(self, route: str) -> bool:
        """Take one attempt out of the route's share; False: there is none."""
        credit = self._credit.get(route, 0.0)
        if credit < 1.0:
            return False
        self._credit[route] = credit - 1.0
        return True

    def begin(self, work: asyncio.Task[None]) -> None:
        """Keep a task until it is done."""
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way."""
        await cancel_all(self._tasks)


class Hedge:
    """Of one request: the clock that waits for its first token, then the second attempt."""

    def __init__(self, hedges: Hedges, generation: Generation, wait_s: float) -> None:
        self._hedges = hedges
        self._generation = generation
        self._rival: Flight | None = None  # the second attempt, once it is on its way
        self._sent = False
        self._over = False
        self._timer = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._start)

    def end(self) -> None:
        """The request is over: so is its second attempt."""
        self._timer.cancel()
        if self._rival is not None and not self._over:
            self._lose(self._rival)

    def takes_over(self, error: MmserveError) -> bool:
        """The first attempt has failed: the second one is the request's from now on, if there is one."""
        generation = self._generation
        route, cause = generation.table.routes.get(generation.route), cause_of(error)
        if self._rival is None or not self._sent or self._over or generation.flight.recovering:
            return False
        if cause is None or route is None or cause not in route.fallback_on:
            return False
        generation.gave_up(error)
        if error.status >= 500:
            self._hedges.generator.experience.failed(generation.flight.deployment.id, time.monotonic())
        self._drop(self._trade())
        return True

    def _start(self) -> None:
        flight = self._generation.flight
        late = flight.over or flight.first_token_at is not None or flight.committed or flight.recovering
        link = None if late else self._room()
        if link is None or not self._hedges.pay(self._generation.route):
            return
        self._generation.rest.remove(link)
        self._hedges.begin(asyncio.create_task(self._send(link)))

    def _room(self) -> Link | None:
        """The next choice that would take the request into its batch at once."""
        generator, table = self._hedges.generator, self._generation.table
        for link in self._generation.rest:
            load = generator.load_of(link.id)
            room = load is not None and load.ready and not load.waiting and load.running < load.max_streams
            closed = generator.experience.state(link.id) is State.CLOSED
            if (
                room
                and closed
                and link.id in table.deployments
                and generator.may_take(self._generation, link)
            ):
                return link
        return None

    async def _send(self, link: Link) -> None:
        generation, generator = self._generation, self._hedges.generator
        flight = generation.flight
        request = msgspec.structs.replace(flight.request, request_id=f"{generation.request_id}-h")
        deployment = generation.table.deployments[link.id]
        rival = Flight(request, flight.plan, flight.grant, deployment, deadline_at=flight.deadline_at)
        rival.opening = None if flight.opening is None else ""
        rival.expected_s = link.ttft_s
        rival.on_first, rival.mover = self._rival_was_first, self._rival_failed
        flight.on_first = self._first_was_first
        self._rival = rival
        try:
            await generator.send_beside(generation, rival)
        except (MmserveError, Refused) as problem:
            log.info("no second attempt for %s: %s", generation.request_id, problem)
            self._over = True
            self._hedges.hub.remove(rival)
            generation.rest.insert(0, link)
            return
        metrics.hedges.labels("sent").inc()
        self._sent = True
        if self._over:
            # The first one had its token while this one was being sent.
            await generator.stop(rival)

    def _first_was_first(self) -> None:
        if self._rival is not None and not self._over:
            metrics.hedges.labels("lost").inc()
            self._lose(self._rival)

    def _rival_was_first(self) -> None:
        flight, rival = self._generation.flight, self._rival
        if self._over or rival is None:
            return
        if flight.over or flight.delivered or flight.committed:
            self._lose(rival)
        elif flight.recovering:
            asyncio.get_running_loop().call_later(AGAIN_S, self._rival_was_first)
        else:
            metrics.hedges.labels("won").inc()
            slow_s = time.monotonic() - flight.begun_at
            self._hedges.generator.experience.waited(flight, slow_s)
            self._lose(self._trade())

    def _rival_failed(self, error: MmserveError) -> bool:
        """An error cannot win: nobody hears of it but the decision's record."""
        rival = self._rival
        if rival is None or self._over:
            return True
        metrics.hedges.labels("failed").inc()
        if error.status >= 500:
            self._hedges.generator.experience.failed(rival.deployment.id, time.monotonic())
        self._note(rival, error.error_code or "error", error.message)
        self._drop(rival)
        return True

    def _trade(self) -> Flight:
        """The request goes on with the second attempt; returned is the first one, in the second one's flight."""
        generation, hub = self._generation, self._hedges.hub
        flight, rival = generation.flight, self._rival
        assert rival is not None
        hub.remove(flight)
        hub.remove(rival)
        flight.trade(rival)
        flight.attempt += 1
        hub.add(flight)
        flight.pending = [event for event in flight.pending if event[2] in (IDLE, STATUS, GONE)]
        flight.push([flight.job_id, -1, RESTARTED])
        for event in rival.pending:
            flight.push(event)
        rival.pending = []
        return rival

    def _lose(self, loser: Flight) -> None:
        """End an attempt that nobody waits for, and bill the route for what it has made."""
        self._note(loser, HEDGED, "another attempt had the first token")
        self._hedges.generator.bill_beside(self._generation, loser)
        self._hedges.generator.experience.left(loser.deployment.id, time.monotonic())
        self._drop(loser)

    def _drop(self, loser: Flight) -> None:
        self._over = True
        self._generation.flight.on_first = loser.on_first = None
        loser.over = True
        self._hedges.hub.remove(loser)
        self._hedges.begin(asyncio.create_task(self._hedges.generator.stop(loser)))

    def _note(self, flight: Flight, outcome: str, why: str) -> None:
        self._generation.attempts.append(
            AttemptRecord(
                deployment=flight.deployment.id,
                served_id=flight.deployment.served_id,
                outcome=outcome,
                after_s=time.monotonic() - self._generation.flight.begun_at,
                replica=flight.replica or "",
                why=why,
            )
        )
