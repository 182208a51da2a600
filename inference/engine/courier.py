"""The I/O thread of an engine worker: one asyncio loop for pull, send, control, heartbeat and bookkeeping.

    queues ─ Puller ─ Intake ──Start──▶ engine thread ──Report──▶ Sender ─ gateways
                        Control ──Abort──▶                    └─▶ Bookkeeper ─ RQ's registries
    GatewayWatch ─────────────────┘         Pulse ─ beats

It owns the jobs in hand and the retained events; the engine thread owns the batch. They share only messages.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from inference.capacity.ladder import SERVING
from inference.engine.base import Engine
from inference.engine.bookkeeper import Bookkeeper
from inference.engine.control import Control
from inference.engine.gatewaywatch import GatewayWatch
from inference.engine.inhand import InHand
from inference.engine.intake import Intake
from inference.engine.links import open_client, open_layer
from inference.engine.load import Load
from inference.engine.messages import Abort, Command, Ended, Event, IoLost, Outcome, Report
from inference.engine.puller import Puller
from inference.engine.pulse import Pulse
from inference.engine.rest import Rung
from inference.engine.retained import Retained
from inference.engine.sender import Sender
from inference.protocol import ReplicaBeat

FLUSH_S = 5.0

logger = logging.getLogger(__name__)


class Courier:
    """Runs the I/O thread. Its public methods are called by the engine thread."""

    def __init__(
        self,
        *,
        replica: str,
        deployment: str,
        worker: str,
        redis_url: str,
        max_streams: int,
        worker_record: Callable[[], dict[str, str]],
        inbox: SimpleQueue[Command],
    ) -> None:
        self._replica = replica
        self._deployment = deployment
        self._worker = worker
        self._redis_url = redis_url
        self._max_streams = max_streams
        self._worker_record = worker_record
        self._inbox = inbox
        # Read by the heartbeat while the engine loads.
        self.stage = "starting"
        self.stage_bytes: tuple[int | None, int | None] = (None, None)
        self._state = "loading"
        self._rung = Rung()
        self._engine: Engine | None = None
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        """Start the thread: beats say ``loading`` from here on."""
        self._thread.start()
        self._started.wait()

    def serve(self, engine: Engine) -> None:
        """The engine is loaded: pull jobs for it."""
        self._loop.call_soon_threadsafe(self._serve, engine)

    def deliver(self, report: Report) -> None:
        """Hand over what a turn of the engine loop brought."""
        self._loop.call_soon_threadsafe(self._deliver, report)

    def drain(self) -> None:
        """Pull no more."""
        self._loop.call_soon_threadsafe(self._stop_pulling)

    def rest(self, rung: Rung) -> None:
        """The engine lies on this rung, or is about to: no job for it until it serves."""
        self._loop.call_soon_threadsafe(self._rest, rung)

    def waking(self) -> None:
        """It gets up; nobody knows yet whether it can serve."""
        self._state, self.stage = "loading", "waking"

    def serve_again(self, rung: Rung) -> None:
        """It has got up, or never lay down."""
        self._loop.call_soon_threadsafe(self._serve_again, rung)

    def close(self) -> None:
        """Give back what never reached the engine, send and book what waits, and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(timeout=2 * FLUSH_S)

    # Everything below runs in the I/O thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:  # noqa: BLE001 the engine thread must hear of it, whatever it was
            logger.exception("the I/O thread failed")
            self._inbox.put(IoLost(error))
        finally:
            self._started.set()
            self._loop.close()

    async def _main(self) -> None:
        now = time.time()
        self._closing = asyncio.Event()
        self._connection = open_client(self._redis_url)
        self._layer = open_layer(self._redis_url)
        self._inhand = InHand(self._max_streams)
        self._retained = Retained()
        self._load = Load(now)
        self._sender = Sender(self._replica, self._layer.send)
        self._bookkeeper = Bookkeeper(self._connection, worker=self._worker, deployment=self._deployment)
        self._pulling: asyncio.Task[None] | None = None
        self._intake: Intake | None = None
        pulse = Pulse(
            self._connection,
            self._layer,
            worker=self._worker,
            deployment=self._deployment,
            inhand=self._inhand,
            read_beat=self._beat,
            worker_record=self._worker_record,
        )
        control = Control(
            self._layer,
            replica=self._replica,
            retained=self._retained,
            cancel=lambda job_id: self._cancel(job_id, "cancelled by the client"),
            obey=self._inbox.put,
        )
        watch = GatewayWatch(self._connection, self._inhand, self._cancel)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                running = [
                    self._tasks.create_task(part.run())
                    for part in (self._sender, self._bookkeeper, control, pulse, watch)
                ]
                self._started.set()
                await self._closing.wait()
                await self._finish_up()
                for task in running:
                    task.cancel()
        finally:
            if self._intake is not None:
                self._intake.close()
            await self._layer.flush()
            await self._connection.aclose()

    async def _finish_up(self) -> None:
        self._stop_pulling()
        for job_id, _ in self._inhand:
            self._end(Ended(job_id=job_id, outcome=Outcome.GIVEN_BACK))
        try:
            async with asyncio.timeout(FLUSH_S):
                await self._sender.flush()
                await self._bookkeeper.flush()
        except TimeoutError:
            logger.warning("left without sending or booking everything: Redis did not take it in time")

    def _serve(self, engine: Engine) -> None:
        self._engine = engine
        self._state = "ready"
        self.stage, self.stage_bytes = "", (None, None)
        self._intake = Intake(
            engine=engine,
            inhand=self._inhand,
            retained=self._retained,
            tasks=self._tasks,
            start=self._inbox.put,
            emit=self._emit,
            resend=self._sender.put,
            end=self._end,
        )
        self._puller = Puller(
            self._connection,
            replica=self._replica,
            worker=self._worker,
            deployment=self._deployment,
            inhand=self._inhand,
            bookkeeper=self._bookkeeper,
            take=self._intake.take,
        )
        self._pulling = self._tasks.create_task(self._puller.run())

    def _rest(self, rung: Rung) -> None:
        self._stop_pulling("asleep" if rung.name != SERVING else "draining")
        self._rung = rung

    def _serve_again(self, rung: Rung) -> None:
        self._rung = rung
        self._state, self.stage = "ready", ""
        if self._pulling is None:
            self._pulling = self._tasks.create_task(self._puller.run())

    def _stop_pulling(self, state: str = "draining") -> None:
        self._state = state
        if self._pulling is not None:
            self._pulling.cancel()
            self._pulling = None

    def _deliver(self, report: Report) -> None:
        now = time.time()
        self._load.take(report, now)
        for channel, events in report.events.items():
            for event in events:
                self._retained.add(event, now)
            self._sender.put(channel, events)
        for ended in report.ended:
            self._end(ended)

    def _emit(self, channel: str, event: Event) -> None:
        self._retained.add(event, time.time())
        self._sender.put(channel, [event])

    def _end(self, ended: Ended) -> None:
        held = self._inhand.release(ended.job_id)
        if held is None:
            return
        self._retained.drop(ended.job_id)
        self._bookkeeper.busy = len(self._inhand) > 0
        self._bookkeeper.put(ended, held.queue, held.executions)

    def _cancel(self, job_id: str, reason: str) -> None:
        held = self._inhand.cancel(job_id, reason)
        if held is not None and held.in_engine:
            self._inbox.put(Abort(job_id, reason))

    def _beat(self, now: float) -> ReplicaBeat:
        self._retained.prune(now)
        load = self._load
        return ReplicaBeat(
            replica=self._replica,
            deployment=self._deployment,
            worker=self._worker,
            state=self._state,
            stage=self.stage,
            at=now,
            running=min(load.running, self._max_streams),
            waiting=max(0, self._inhand.streams - min(load.running, self._max_streams)),
            kv_usage=load.kv_usage,
            tokens_per_s=load.tokens_per_s(now),
            jobs_per_s=load.jobs_per_s(now),
            ttft_s=load.ttft_s.mean,
            tpot_s=load.tpot_s.mean,
            steps=load.steps,
            max_streams=self._max_streams,
            context_length=self._engine.context_length if self._engine else 0,
            memory=self._engine.memory() if self._engine else {},
            rungs=list(self._engine.rungs) if self._engine else [],
            rung=self._rung.name,
            freed_bytes=self._rung.freed_bytes,
            host_bytes=self._rung.host_bytes,
            woke_from=self._rung.woke_from,
            woke_s=self._rung.woke_s,
            peak_running=load.peak_running,
            done_bytes=self.stage_bytes[0],
            total_bytes=self.stage_bytes[1],
            form=self._engine.form if self._engine else "",
        )
