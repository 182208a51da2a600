"""Moves a request in flight to the next choice of its chain, while its client has nothing of an answer."""

from __future__ import annotations

import asyncio
import logging
import time

from inference.gateway.admission import Refused
from inference.gateway.fallback import Mover, NoFirstToken, cause_of, exhausted
from inference.gateway.generation import Generation, Generator
from inference.gateway.hub import Hub
from inference.gateway.ledger import Reservation
from inference.gateway.tasks import cancel_all
from mmserve.errors import MmserveError, ModelNotLoaded
from routing.core.chain import Link

log = logging.getLogger(__name__)


class Moving:
    """Of one gateway process. Closed by the runtime."""

    def __init__(self, hub: Hub, generator: Generator) -> None:
        self._hub = hub
        self._generator = generator
        self._tasks: set[asyncio.Task[None]] = set()
        generator.mover_of = self.mover_of

    def mover_of(self, generation: Generation) -> Mover:
        """What the request's flight asks before it fails."""
        return lambda error: self._take_over(generation, error)

    async def close(self) -> None:
        """End what is under way."""
        await cancel_all(self._tasks)

    def _take_over(self, generation: Generation, error: MmserveError) -> bool:
        flight = generation.flight
        if flight.over or flight.committed or cause_of(error) is None:
            return False
        if generation.hedge is not None and generation.hedge.takes_over(error):
            return True
        link = self._generator.next_link(generation, error)
        if link is None:
            # One that is only slow goes on where nobody else is left.
            if isinstance(error, NoFirstToken):
                return True
            if not generation.attempts:
                return False
            generation.gave_up(error)
            flight.mover = None
            flight.fail(exhausted(generation.attempts, error))
            return True
        flight.recovering = True
        task = asyncio.create_task(self._move(generation, error, link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _move(self, generation: Generation, error: MmserveError, link: Link | None) -> None:
        flight, generator = generation.flight, self._generator
        generation.gave_up(error)
        if error.status >= 500 and not isinstance(error, ModelNotLoaded):
            generator.experience.failed(flight.deployment.id, time.monotonic())
        else:
            generator.experience.left(flight.deployment.id, time.monotonic())
        given_up = flight.job_id
        failed = not isinstance(error, NoFirstToken)
        lost = await generator.give_up(generation, flight, failed=failed)
        if flight.over:
            lost = None  # its client has left, and pays for it
        held: list[Reservation] = []
        self._hub.remove(flight)
        while not flight.over and link is not None:
            generator.turn_to(generation, link)
            flight.begin_attempt()
            flight.forget_answer()
            flight.recovering = True
            try:
                await generator.send(generation, link, replaces=given_up, lost=lost)
            except (MmserveError, Refused) as problem:
                self._hub.remove(flight)
                error = problem.error if isinstance(problem, Refused) else problem
                generation.gave_up(error)
                link = generator.next_link(generation, error)
                continue
            if flight.over:
                # Its client left while it was being sent: only now there is a job to be taken back.
                await generator.stop(flight)
                generator.release(flight.reservations)
            log.warning("request %s goes on at %s", generation.request_id, flight.deployment.id)
            break
        else:
            flight.mover = None
            flight.fail(exhausted(generation.attempts, error))
            if lost is not None:
                # Nothing has taken its place: what it held is given back as it is charged.
                held, flight.reservations = flight.reservations, []
        if lost is not None:
            generator.bill(lost, held)
        flight.heard_at = time.monotonic()
        flight.recovering = False
