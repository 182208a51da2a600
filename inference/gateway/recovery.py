"""A waiting request is never forgotten: silence is asked about, a lost job made again, a deadline ends it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine

from inference.gateway import metrics
from inference.gateway.admission import Admission, Refused
from inference.gateway.config import GatewayConfig
from inference.gateway.controls import Controls
from inference.gateway.fallback import NoFirstToken
from inference.gateway.flight import IDLE, SILENCE_S, STATUS, Flight
from inference.gateway.holding import told
from inference.gateway.hub import Hub
from inference.gateway.live import LiveState
from inference.gateway.refusal import never_up
from inference.gateway.tasks import cancel_all
from inference.protocol import DONE
from mmserve.errors import DeadlineExceeded, EngineLost, Unavailable
from routing.core.table import RoutingTable

log = logging.getLogger(__name__)

SWEEP_S = 0.25
MAX_INQUIRY_S = 5.0
RETRY_S = 0.5
STATUS_EVERY_S = 1.0


class Recovery:
    """Looks over all flights four times a second. Started and cancelled by the runtime."""

    def __init__(
        self,
        hub: Hub,
        live: LiveState,
        admission: Admission,
        controls: Controls,
        config: GatewayConfig,
        table: Callable[[], RoutingTable],
    ) -> None:
        self._hub = hub
        self._live = live
        self._admission = admission
        self._controls = controls
        self._config = config
        self._table = table
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        try:
            while True:
                await asyncio.sleep(SWEEP_S)
                self.sweep(time.monotonic())
        finally:
            await cancel_all(self._tasks)

    def sweep(self, now: float) -> None:
        """Look at every request in flight once."""
        self._live.prune(now)
        for flight in self._hub:
            if flight.over:
                continue
            # An engine that has it says itself that the deadline has passed.
            grace_s = self._config.deadline_grace_s if flight.accepted else 0.0
            if now > flight.deadline_at + grace_s:
                self._expire(flight)
                continue
            if flight.idle_after_s is not None and now - flight.sent_at > flight.idle_after_s:
                flight.sent_at = now
                flight.push([flight.job_id, -1, IDLE])
            if flight.wants_status and not flight.accepted and now - flight.status_at >= STATUS_EVERY_S:
                flight.status_at = now
                status = told(flight.deployment, self._live, now, now - flight.begun_at)
                flight.push([flight.job_id, -1, STATUS, status])
            if flight.recovering:
                continue
            if not flight.accepted and self._is_given_up(flight):
                continue
            if flight.first_token_by is not None and now > flight.first_token_by:
                self._hurry(flight)
                continue
            if flight.accepted:
                self._look_after_running(flight, now)
            elif now - flight.heard_at > SILENCE_S and now - flight.probe_at > self._inquiry_s(flight):
                flight.probe_at = now
                flight.inquiries += 1
                self._begin(flight, self._inquire(flight))

    def _is_given_up(self, flight: Flight) -> bool:
        """Whether it waits for what will not come; then it has been told so, or goes to its next choice."""
        entry = self._table().deployments.get(flight.deployment.id)
        load = self._live.loads.get(flight.deployment.id)
        if entry is None or not entry.failure or (load is not None and load.ready):
            return False
        flight.fail(never_up(entry))
        return True

    def _look_after_running(self, flight: Flight, now: float) -> None:
        assert flight.replica is not None
        if not self._live.alive(flight.replica) or flight.replica in flight.unknown_to:
            self._begin(flight, self._again(flight, f"replica {flight.replica} is gone", engine_lost=True))
        elif now - flight.heard_at > SILENCE_S and now - flight.probe_at > SILENCE_S:
            flight.probe_at = now
            self._controls.resend(flight.replica, flight.job_id, flight.next_seq)

    def _inquiry_s(self, flight: Flight) -> float:
        """The longer a request waits in a queue, the less often it is looked for."""
        return min(MAX_INQUIRY_S, SILENCE_S * 1.5**flight.inquiries)

    def _expire(self, flight: Flight) -> None:
        flight.fail(DeadlineExceeded("The request was not answered before its deadline."))
        flight.over = True

    def _hurry(self, flight: Flight) -> None:
        """No first token in the time that its route gives: another choice is tried, if there is one."""
        flight.first_token_by = None
        if flight.first_token_at is None and flight.mover is not None and not flight.committed:
            flight.mover(NoFirstToken("no first token in time"))

    def _begin(self, flight: Flight, work: Coroutine[None, None, None]) -> None:
        flight.recovering = True
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _inquire(self, flight: Flight) -> None:
        """Find out where a job is that no engine has reported."""
        job_id = flight.job_id
        try:
            waiting, status, worker = await self._admission.whereabouts(job_id, flight.queue)
        except Unavailable:
            flight.recovering = False
            return
        flight.recovering = False
        if flight.over or flight.accepted or flight.job_id != job_id or waiting:
            flight.missing = False
            return
        holders = set(self._live.replicas(flight.deployment.id))
        if status == "started" and worker and not self._live.worker_alive(worker):
            await self._again(flight, f"worker {worker} is gone", engine_lost=True)
        elif status != "started" and flight.missing and holders <= flight.unknown_to:
            await self._again(flight, f"job {job_id} is in no queue and no engine", engine_lost=False)
        else:
            flight.missing = status != "started"
            flight.unknown_to.clear()
            flight.probe_at = time.monotonic() - self._inquiry_s(flight) + SILENCE_S / 2
            for replica in holders:
                self._controls.resend(replica, job_id, flight.next_seq)

    async def _again(self, flight: Flight, why: str, *, engine_lost: bool) -> None:
        """A new attempt: the rest of the text if the client has its beginning, else the whole."""
        flight.recovering = True
        if flight.finished_choices == flight.plan.choices:  # only the engine's closing word was lost
            usage = {
                "prompt_tokens": flight.prompt_tokens,
                "completion_tokens": len(flight.tokens),
            }
            flight.take([flight.job_id, flight.next_seq, DONE, usage], flight.replica or "", time.monotonic())
            return
        if engine_lost and flight.attempt >= self._config.max_attempts:
            flight.fail(EngineLost(f"The engine was lost {flight.attempt} times while it answered."))
            return
        request = flight.request
        if flight.delivered:
            continued = flight.continuation()
            if continued is None:
                flight.fail(
                    EngineLost(
                        "The engine was lost, and the rest of this answer cannot be continued exactly."
                    )
                )
                return
            request = continued
        else:
            flight.forget_answer()
        metrics.attempts.inc()
        log.warning("request %s is enqueued again: %s", request.request_id, why)
        replaced = flight.job_id
        self._hub.remove(flight)
        flight.begin_attempt()
        flight.recovering = True
        self._hub.add(flight)
        while not flight.over:
            try:
                await self._admission.admit(
                    request,
                    job_id=flight.job_id,
                    grant=flight.grant,
                    deployment=flight.deployment,
                    reserved_tokens=0,
                    drain_per_s=0.0,
                    now=time.time(),
                    replaces=replaced,
                )
                break
            except Unavailable as error:
                log.warning("request %s waits to be enqueued again: %s", request.request_id, error)
                await asyncio.sleep(RETRY_S)
            except Refused as refused:
                flight.fail(refused.error)
                return
        flight.heard_at = time.monotonic()
        flight.recovering = False
