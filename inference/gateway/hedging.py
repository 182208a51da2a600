"""A second attempt beside a first one that is slow: whoever has the first token answers, the other one is ended.

Source: hedged requests (Dean and Barroso, The Tail at Scale, 2013): the second is sent when the first has taken longer
than the 95th percentile of what was expected, and only for a small share of all requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

import msgspec

from inference.gateway import metrics
from inference.gateway.admission import Refused
from inference.gateway.fallback import NoFirstToken, cause_of
from inference.gateway.flight import Flight
from inference.gateway.generation import HEDGED, Generation, Generator
from inference.gateway.hub import Hub
from inference.gateway.tasks import cancel_all
from mmserve.errors import MmserveError
from routing.core.breaker import State
from routing.core.chain import Link
from routing.core.table import DeploymentEntry

log = logging.getLogger(__name__)

# What a route may have saved up: so many hedges at once.
MOST_CREDIT = 10.0
# While the first attempt is being looked for, the second waits with its token.
AGAIN_S = 0.02
# How long a stop waits for those who lost to be stopped.
LAST_WORDS_S = 1.0


class Second(NamedTuple):
    """Where a second attempt goes: to another replica of the same deployment, or to the next choice of the chain."""

    deployment: DeploymentEntry
    expected_s: float
    replica: str = ""
    link: Link | None = None  # no longer in the chain's rest while it is tried


class Hedges:
    """Of one gateway process, owned by its event loop. Closed by the runtime.

    Each process spends of its own requests only, so the share holds for all of them together. Each arm of an
    experiment does as well: a slow one takes nothing from the others.
    """

    def __init__(self, hub: Hub, generator: Generator) -> None:
        self.hub = hub
        self.generator = generator
        self._credit: dict[str, float] = {}  # by purse
        self._tasks: set[asyncio.Task[None]] = set()
        generator.on_admitted = self.consider

    def consider(self, generation: Generation) -> None:
        """Watch an admitted request of a route that hedges; each adds its share of one more attempt."""
        route = generation.table.routes.get(generation.route)
        if route is None or not route.hedge_share:
            return
        purse = purse_of(generation)
        self._credit[purse] = min(MOST_CREDIT, self._credit.get(purse, 0.0) + route.hedge_share)
        flight = generation.flight
        # A unit of an experiment is served by its arm while that lives.
        alone = bool(generation.decision.assignments) or not generation.may_move
        if alone and len(self.generator.replicas(flight.deployment.id)) < 2:
            return
        slow_s = self.generator.experience.slow_after_s(flight.deployment.id, flight.expected_s)
        if slow_s is None:
            return
        generation.hedge = Hedge(self, generation, slow_s - (time.monotonic() - flight.begun_at))
        if flight.mover is None:
            # Its client may not be told who answers while that is open.
            flight.ask_first(self.generator.mover_of(generation))

    def can_pay(self, purse: str) -> bool:
        """Whether enough is saved up for one attempt."""
        return self._credit.get(purse, 0.0) >= 1.0

    def pay(self, purse: str) -> bool:
        """Take one attempt out of what was saved up; False: there is none."""
        if not self.can_pay(purse):
            return False
        self._credit[purse] -= 1.0
        return True

    def begin(self, work: asyncio.Task[None]) -> None:
        """Keep a task until it is done."""
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way; who lost may still be stopped, and what was held for it given back."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_WORDS_S)
        await cancel_all(self._tasks)


class Hedge:
    """Of one request: the clock that waits for its first token, then the second attempt."""

    def __init__(self, hedges: Hedges, generation: Generation, wait_s: float) -> None:
        self._hedges = hedges
        self._generation = generation
        self._rival: Flight | None = None  # the second attempt, once it is on its way
        self._holder = ""  # the replica that had the first attempt when the second was sent
        self._sent = False  # whether the second attempt has its job, for certain
        self._over = False
        self._failed = False  # of one that was over before it was sent
        self._timer = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._start)

    def end(self) -> None:
        """The request is over: so is its second attempt."""
        self._timer.cancel()
        if self._rival is not None and not self._over:
            self._lose(self._rival)

    def takes_over(self, error: MmserveError) -> bool:
        """The first attempt has failed: the second one is the request's from now on, if there is one."""
        generation = self._generation
        if self._rival is None or not self._sent or self._over or generation.flight.recovering:
            return False
        if isinstance(error, NoFirstToken):
            return False  # both run on
        if cause_of(error) not in generation.decision.judgement.slate.fallback_on:
            return False
        generation.gave_up(error)
        if error.status >= 500:
            self._hedges.generator.experience.failed(generation.flight.deployment.id, time.monotonic())
        self._drop(self._trade(), failed=True)
        return True

    def _start(self) -> None:
        if not self._is_late and self._hedges.can_pay(purse_of(self._generation)):
            self._hedges.begin(asyncio.create_task(self._try()))

    @property
    def _is_late(self) -> bool:
        flight = self._generation.flight
        return flight.over or flight.first_token_at is not None or flight.committed or flight.recovering

    async def _try(self) -> None:
        holder = await self._hedges.generator.holder_of(self._generation.flight)
        self._holder = holder
        second = None if self._is_late else self._room(holder)
        if second is None or not self._hedges.pay(purse_of(self._generation)):
            return
        if second.link is not None:
            self._generation.rest.remove(second.link)
        await self._send(second)

    def _room(self, holder: str) -> Second | None:
        """Who would take the request into its batch at once: another replica first, as it answers the same."""
        generator, flight = self._hedges.generator, self._generation.flight
        if holder:
            free = [
                beat
                for beat in generator.replicas(flight.deployment.id)
                if beat.replica != holder and beat.running + beat.waiting < beat.max_streams
            ]
            if free:
                emptiest = min(free, key=lambda beat: beat.running + beat.waiting)
                return Second(flight.deployment, flight.expected_s, emptiest.replica)
        return None if self._generation.decision.assignments else self._next_choice()

    def _next_choice(self) -> Second | None:
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
                return Second(table.deployments[link.id], link.ttft_s, link=link)
        return None

    async def _send(self, second: Second) -> None:
        generation, generator = self._generation, self._hedges.generator
        flight = generation.flight
        request = msgspec.structs.replace(flight.request, request_id=f"{generation.request_id}-h")
        rival = Flight(request, flight.plan, flight.grant, second.deployment, deadline_at=flight.deadline_at)
        rival.opening = None if flight.opening is None else ""
        rival.expected_s = second.expected_s
        rival.on_first, rival.mover = self._rival_was_first, self._rival_failed
        flight.on_first = self._first_was_first
        self._rival = rival
        try:
            await generator.send_beside(generation, rival, prefers=second.replica)
        except (MmserveError, Refused) as problem:
            log.info("no second attempt for %s: %s", generation.request_id, problem)
            self._over = True
            self._hedges.hub.remove(rival)
            generator.release(rival.reservations)
            if second.link is not None:
                generation.rest.insert(0, second.link)
            return
        metrics.hedges.labels("sent").inc()
        if self._over and not self._sent:
            # It was over while it was being sent: only now there is a job to be taken back.
            await self._stop(rival, failed=self._failed)
        self._sent = True

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
        elif not self._hedges.generator.is_held(self._generation, rival.deployment):
            self._lose(rival)  # the first attempt has moved to a cheaper choice meanwhile
        else:
            metrics.hedges.labels("won").inc()
            slow_s = time.monotonic() - flight.begun_at
            self._hedges.generator.experience.waited(flight, slow_s)
            self._lose(self._trade(), self._holder)

    def _rival_failed(self, error: MmserveError) -> bool:
        """An error cannot win: nobody hears of it but the decision's record."""
        rival = self._rival
        if rival is None or self._over:
            return True
        metrics.hedges.labels("failed").inc()
        if error.status >= 500:
            self._hedges.generator.experience.failed(rival.deployment.id, time.monotonic())
        self._note(rival, error.error_code or "error", error.message)
        self._drop(rival, failed=True)
        return True

    def _trade(self) -> Flight:
        """The request goes on with the second attempt; returned is the first one, in the second one's flight."""
        generation, hub = self._generation, self._hedges.hub
        flight, rival = generation.flight, self._rival
        assert rival is not None
        self._sent = True
        hub.remove(flight)
        hub.remove(rival)
        flight.trade(rival)
        generation.most_cost_nano = generation.most_nano(flight.deployment)
        flight.attempt += 1
        hub.add(flight)
        flight.start_anew()
        for event in rival.pending:
            flight.push(event)
        rival.pending = []
        return rival

    def _lose(self, loser: Flight, holder: str = "") -> None:
        """End an attempt that nobody waits for."""
        self._note(loser, HEDGED, "another attempt had the first token", holder)
        self._hedges.generator.experience.left(loser.deployment.id, time.monotonic())
        self._drop(loser)

    def _drop(self, loser: Flight, *, failed: bool = False) -> None:
        """Have it stopped, and the route billed for what an engine has made of it."""
        self._over = True
        self._generation.flight.on_first = loser.on_first = None
        loser.over = True
        self._hedges.hub.remove(loser)
        self._failed = failed
        if self._sent:
            self._hedges.begin(asyncio.create_task(self._stop(loser, failed=failed)))

    async def _stop(self, loser: Flight, *, failed: bool) -> None:
        generator = self._hedges.generator
        lost = await generator.give_up(self._generation, loser, failed=failed)
        if lost is None:
            generator.release(loser.reservations)
        else:
            generator.bill(lost, loser.reservations)

    def _note(self, flight: Flight, outcome: str, why: str, holder: str = "") -> None:
        self._generation.note(flight.deployment, outcome, why, flight.replica or holder)


def purse_of(generation: Generation) -> str:
    """Whose requests pay for a second attempt of this one: its route's, in its arms."""
    arms = (f"{one.experiment} {one.arm}" for one in generation.decision.assignments)
    return "\n".join((generation.route, *arms))
