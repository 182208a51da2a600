"""The engine worker: one RQ worker that keeps many RQ jobs in one running batch.

The main thread turns the engine loop and owns the batch; the courier's thread does everything with Redis.
There is no fork and no thread per job, and RQ's registries are kept true in batches (see ``lua/``).
"""

from __future__ import annotations

import heapq
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

import redis
import rq
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from inference.capacity.ladder import DEEPER, SERVING
from inference.engine import rqkeys
from inference.engine.base import Engine, EventTail, Output, TellStage, Usage
from inference.engine.courier import Courier
from inference.engine.failures import as_error, describe, error_payload
from inference.engine.intake import NOTHING_USED, usage_payload
from inference.engine.messages import (
    Abort,
    Command,
    Drain,
    Ended,
    IoLost,
    Outcome,
    Report,
    Sleep,
    Start,
    Wake,
)
from inference.engine.pulse import WORKER_TTL_S
from inference.engine.release import release_abandoned
from inference.engine.rest import Rest
from inference.engine.warmup import warm_up
from inference.protocol import ACCEPTED, DELTA, DONE, ERROR, GenerateRequest
from mmserve.errors import DeadlineExceeded, MmserveError

DRAIN_S = 30.0
IDLE_WAIT_S = 1.0

logger = logging.getLogger(__name__)

# Opens the engine; tells the stage of the load as it goes.
OpenEngine = Callable[[TellStage], Engine]


@dataclass(slots=True)
class _Running:
    """One job in the batch."""

    request: GenerateRequest
    started_at: float
    enqueued_at: float
    next_seq: int = 0
    first_token_at: float = 0.0
    tokens: int = 0
    streams: int = 1
    share_at_start_s: float = 0.0

    @property
    def has_spoken(self) -> bool:
        return self.first_token_at > 0.0


class EngineWorker(rq.Worker):
    """Serves one deployment's queues with one engine until it is told to drain."""

    def __init__(
        self,
        *,
        replica: str,
        deployment: str,
        redis_url: str,
        open_engine: OpenEngine,
        max_streams: int,
        drain_s: float = DRAIN_S,
        warmup_prompts: Sequence[str] = (),
    ) -> None:
        super().__init__(
            rqkeys.deployment_queues(deployment),
            name=rqkeys.worker_name(replica, os.getpid()),
            connection=redis.Redis.from_url(redis_url),
            worker_ttl=WORKER_TTL_S - 60,
            serializer=JSONSerializer,
            log_job_description=False,
        )
        self.drain_s = drain_s
        self._warmup_prompts = warmup_prompts
        self._replica = replica
        self._open_engine = open_engine
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        self._record: dict[str, str] = {}
        self._courier = Courier(
            replica=replica,
            deployment=deployment,
            worker=self.name,
            redis_url=redis_url,
            max_streams=max_streams,
            worker_record=lambda: self._record,
            inbox=self._inbox,
        )
        self._running: dict[str, _Running] = {}
        self._deadlines: list[tuple[float, str]] = []
        # What a stream that had always been in the batch would have had of the engine's time.
        self._share_s = 0.0
        self._streams = 0
        self._drain_until: float | None = None
        # The rung that it is to rest on as soon as nothing runs, and until when that may take.
        self._going_down: tuple[str, float] | None = None
        self._engine: Engine
        self._rest: Rest

    def work(self, *_args: Any, **_kwargs: Any) -> bool:
        """Load, serve, drain. Returns when drained; raises if the engine or the I/O thread is dead."""
        self._install_signal_handlers()
        self._courier.start()
        self._engine = self._open_engine(self._tell_stage)
        self._rest = Rest(self._engine)
        if self._warmup_prompts:
            self._tell_stage("warming up")
            warm_up(self._engine, self._warmup_prompts)
        release_abandoned(self.connection, self.queue_names())
        self.register_birth()  # type: ignore[no-untyped-call]
        self.set_state(WorkerStatus.IDLE)
        self._record = {key: str(value) for key, value in self.serialize().items()}
        self._courier.serve(self._engine)
        logger.info("replica %s serves %s", self._replica, ", ".join(self.queue_names()))
        try:
            while not self._is_drained():
                self._turn()
        except BaseException:
            # The jobs stay started: the node releases them, the gateways send them elsewhere.
            logger.exception("replica %s: the engine is dead", self._replica)
            raise
        logger.info("replica %s is drained", self._replica)
        self._record = {}
        self._courier.close()
        self.register_death()  # type: ignore[no-untyped-call]
        self._engine.close()
        return True

    def _install_signal_handlers(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self._inbox.put(Drain(self.drain_s))

    def _tell_stage(
        self, stage: str, /, done_bytes: int | None = None, total_bytes: int | None = None
    ) -> None:
        self._courier.stage, self._courier.stage_bytes = stage, (done_bytes, total_bytes)

    def _is_drained(self) -> bool:
        return self._drain_until is not None and not self._running

    def _turn(self) -> None:
        """One turn: take commands, drop what is overdue, step, report."""
        report = Report()
        self._take_commands(report)
        self._drop_overdue(report)
        if self._engine.is_busy():
            began_at = time.perf_counter()
            outputs = self._engine.step()
            self._share_s += (time.perf_counter() - began_at) / max(1, self._streams)
            for output in outputs:
                self._note(output, report)
            report.stepped = True
        if self._going_down is not None and not self._running:
            rung, self._going_down = self._going_down[0], None
            self._courier.rest(self._rest.lie_down(rung))
        if report:
            report.running_streams = self._streams
            report.kv_usage = self._engine.kv_usage()
            self._courier.deliver(report)

    def _take_commands(self, report: Report) -> None:
        """All that wait; when there is nothing to step, wait for the first."""
        wait_s = 0.0 if self._engine.is_busy() else self._idle_wait_s()
        try:
            command = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
        except Empty:
            if wait_s:
                self._engine.rest()
            return
        try:
            while True:
                self._obey(command, report)
                command = self._inbox.get_nowait()
        except Empty:
            return

    def _idle_wait_s(self) -> float:
        due = self._deadlines[0][0] - time.time() if self._deadlines else IDLE_WAIT_S
        return min(IDLE_WAIT_S, max(0.001, due))

    def _obey(self, command: Command, report: Report) -> None:
        match command:
            case Start():
                self._start(command, report)
            case Abort(job_id, reason):
                job = self._running.get(job_id)
                if job is not None:
                    usage = self._engine.abort(job_id) or NOTHING_USED
                    self._done(job_id, job, usage, report, Outcome.CANCELED, reason)
            case Drain(deadline_s):
                self._begin_drain(deadline_s)
            case Sleep(rung, deadline_s):
                self._lie_down(rung, deadline_s)
            case Wake():
                self._get_up()
            case IoLost(error):
                raise error

    def _lie_down(self, rung: str, deadline_s: float) -> None:
        """Asked again and again until the beats say that it rests."""
        busy = self._drain_until is not None or self._going_down is not None
        if busy or rung not in self._engine.rungs or rung not in DEEPER.get(self._rest.rung.name, ()):
            return
        self._going_down = (rung, time.time() + max(0.0, deadline_s))
        self._courier.rest(self._rest.rung)

    def _get_up(self) -> None:
        was_going_down, self._going_down = self._going_down is not None, None
        if self._is_resting:
            self._courier.waking()
            self._rest.get_up()
        elif not was_going_down:
            return
        if self._drain_until is None:
            self._courier.serve_again(self._rest.rung)

    @property
    def _is_resting(self) -> bool:
        return self._rest.rung.name != SERVING

    def _start(self, start: Start, report: Report) -> None:
        now = time.time()
        job = _Running(
            start.request,
            now,
            start.enqueued_at,
            streams=start.prepared.streams,
            share_at_start_s=self._share_s,
        )
        if self._drain_until is not None or self._is_resting:
            report.ended.append(Ended(job_id=start.job_id, outcome=Outcome.GIVEN_BACK))
            return
        try:
            self._engine.add(start.job_id, start.request, start.prepared)
        except Exception as error:  # noqa: BLE001 one bad request must not disturb the others
            self._fail(start.job_id, job, as_error(error), report)
            return
        self._running[start.job_id] = job
        self._streams += job.streams
        heapq.heappush(self._deadlines, (start.request.deadline, start.job_id))
        self._emit(start.job_id, job, [ACCEPTED, self._replica, start.prepared.prompt_tokens], report)

    def _drop_overdue(self, report: Report) -> None:
        now = time.time()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, job_id = heapq.heappop(self._deadlines)
            job = self._running.get(job_id)
            if job is not None:
                self._engine.abort(job_id)
                self._fail(
                    job_id,
                    job,
                    DeadlineExceeded("the deadline passed before the answer was finished"),
                    report,
                )
        if self._drain_until is not None and self._drain_until <= now:
            self._hand_off(report)
        if self._going_down is not None and self._going_down[1] <= now:
            self._hand_off(report)

    def _begin_drain(self, deadline_s: float) -> None:
        until = time.time() + max(0.0, deadline_s)
        self._drain_until = until if self._drain_until is None else min(until, self._drain_until)
        self._courier.drain()

    def _hand_off(self, report: Report) -> None:
        """The drain's time is up: what has not spoken goes back to the head of its queue.

        Of the rest nothing is said: once this replica is gone, the gateways continue their texts elsewhere.
        """
        now = time.time()
        for job_id, job in list(self._running.items()):
            self._engine.abort(job_id)
            self._forget(job_id)
            if job.has_spoken:
                ended = Ended(
                    job_id=job_id, outcome=Outcome.FAILED, worked_s=now - job.started_at, error="drained"
                )
            else:
                ended = Ended(job_id=job_id, outcome=Outcome.GIVEN_BACK)
            report.ended.append(ended)

    def _note(self, output: Output, report: Report) -> None:
        """One job's part of a step."""
        job = self._running.get(output.job_id)
        if job is None:
            return
        now = time.time()
        for tail in output.tails:
            if tail[0] == DELTA:
                report.batch_streams += 1
                report.tokens += len(tail[3])
                job.tokens += len(tail[3])
                if not job.first_token_at:
                    job.first_token_at = now
                    report.ttfts_s.append(now - job.enqueued_at)
            self._emit(output.job_id, job, tail, report)
        if output.error is not None:
            self._fail(output.job_id, job, output.error, report)
        elif output.usage is not None:
            a_stream = job.tokens / job.streams
            if a_stream > 1:
                report.tpots_s.append((now - job.first_token_at) / (a_stream - 1))
            self._done(output.job_id, job, output.usage, report, Outcome.FINISHED)

    def _emit(self, job_id: str, job: _Running, tail: EventTail, report: Report) -> None:
        report.add(job.request.reply_to, [job_id, job.next_seq, *tail])
        job.next_seq += 1

    def _done(
        self,
        job_id: str,
        job: _Running,
        usage: Usage,
        report: Report,
        outcome: Outcome,
        why: str | None = None,
    ) -> None:
        now = time.time()
        ttft_s = job.first_token_at - job.enqueued_at if job.has_spoken else 0.0
        engine_s = (self._share_s - job.share_at_start_s) * job.streams
        payload = usage_payload(
            usage, job.started_at - job.enqueued_at, ttft_s, now - job.enqueued_at, engine_s
        )
        self._emit(job_id, job, [DONE, payload], report)
        self._forget(job_id)
        report.ended.append(
            Ended(job_id=job_id, outcome=outcome, worked_s=now - job.started_at, usage=usage, error=why)
        )

    def _forget(self, job_id: str) -> None:
        """The job is not in the batch any more, if it ever was."""
        job = self._running.pop(job_id, None)
        if job is not None:
            self._streams -= job.streams

    def _fail(self, job_id: str, job: _Running, error: MmserveError, report: Report) -> None:
        self._emit(job_id, job, [ERROR, error_payload(error)], report)
        self._forget(job_id)
        report.ended.append(
            Ended(
                job_id=job_id,
                outcome=Outcome.FAILED,
                worked_s=time.time() - job.started_at,
                error=describe(error),
            )
        )
