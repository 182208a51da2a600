"""What happens to a job between the queue and the engine: read, checked, rendered, tokenized."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from inference.engine import jobs, rqkeys
from inference.engine.base import Engine, Prepared, Usage
from inference.engine.failures import as_error, describe, error_payload
from inference.engine.inhand import Held, InHand, Pulled
from inference.engine.messages import Ended, Event, Outcome, Start
from inference.engine.puller import AGED_AFTER_S
from inference.engine.retained import Retained
from inference.protocol import DONE, ERROR, PRIORITIES, GenerateRequest
from mmserve.errors import DeadlineExceeded, MmserveError

NOTHING_USED = Usage(0, 0, 0)


class Intake:
    """Owned by the I/O thread. Heavy requests are prepared in one thread beside it, so that beats go on."""

    def __init__(
        self,
        *,
        engine: Engine,
        inhand: InHand,
        retained: Retained,
        tasks: asyncio.TaskGroup,
        start: Callable[[Start], None],
        emit: Callable[[str, Event], None],
        resend: Callable[[str, list[Event]], None],
        end: Callable[[Ended], None],
    ) -> None:
        self._engine = engine
        self._inhand = inhand
        self._retained = retained
        self._tasks = tasks
        self._start = start
        self._emit = emit
        self._resend = resend
        self._end = end
        self._heavy = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")

    def take(self, job: Pulled) -> None:
        """A job came out of the queue."""
        held = self._inhand.take(job, time.time())
        if held is None:
            return  # it runs already: a gateway had lost sight of it
        try:
            request = jobs.decode(job.data)
        except MmserveError as error:
            held.reply_to = jobs.reply_channel(job.data)
            self._fail(job.job_id, held, error)
            return
        held.reply_to = request.reply_to
        if self._retained.is_finished(job.job_id):
            self._answer_again(job.job_id, held)
            return
        if request.deadline <= time.time():
            self._fail(job.job_id, held, DeadlineExceeded("the deadline passed while the request was queued"))
            return
        streams = request.sampling.n * max(1, len(request.prompts or ()))
        self._inhand.set_streams(held, streams)
        try:
            prepared = self._engine.prepare(request) if self._engine.is_light(request) else None
        except Exception as error:  # noqa: BLE001 one bad request must not disturb the others
            self._fail(job.job_id, held, as_error(error))
            return
        if prepared is None:
            self._tasks.create_task(self._prepare_heavy(job, held, request))
        else:
            self._hand_over(job, held, request, prepared)

    def close(self) -> None:
        self._heavy.shutdown(wait=False, cancel_futures=True)

    async def _prepare_heavy(self, job: Pulled, held: Held, request: GenerateRequest) -> None:
        loop = asyncio.get_running_loop()
        try:
            prepared = await loop.run_in_executor(self._heavy, self._engine.prepare, request)
        except Exception as error:  # noqa: BLE001 one bad request must not disturb the others
            self._fail(job.job_id, held, as_error(error))
            return
        self._hand_over(job, held, request, prepared)

    def _hand_over(self, job: Pulled, held: Held, request: GenerateRequest, prepared: Prepared) -> None:
        now = time.time()
        if held.cancelled:
            self._emit(request.reply_to, [job.job_id, 0, DONE, usage_payload(NOTHING_USED, 0.0, 0.0, 0.0)])
            self._end(Ended(job_id=job.job_id, outcome=Outcome.CANCELED, error=held.cancelled))
        elif request.deadline <= now:
            self._fail(job.job_id, held, DeadlineExceeded("the deadline passed while the request was queued"))
        else:
            held.in_engine = True
            enqueued_at = rqkeys.unix_time(job.enqueued_at, held.since)
            if now - enqueued_at > AGED_AFTER_S:
                # It was pulled for its age: in the engine, too, it does not wait behind all that come after it.
                request.priority = PRIORITIES[0]
                self._inhand.raise_class(held)
            self._start(Start(job_id=job.job_id, request=request, prepared=prepared, enqueued_at=enqueued_at))

    def _fail(self, job_id: str, held: Held, error: MmserveError) -> None:
        if held.reply_to:
            self._emit(held.reply_to, [job_id, 0, ERROR, error_payload(error)])
        self._end(Ended(job_id=job_id, outcome=Outcome.FAILED, error=describe(error)))

    def _answer_again(self, job_id: str, held: Held) -> None:
        """The job was answered here and enqueued once more: its gateway missed the answer."""
        self._resend(held.reply_to or "", self._retained.since(job_id, 0) or [])
        self._end(Ended(job_id=job_id, outcome=Outcome.FINISHED))


def usage_payload(
    usage: Usage, queued_s: float, ttft_s: float, e2e_s: float, engine_s: float = 0.0
) -> dict[str, float]:
    """The body of a DONE event; ``engine_s`` is the job's share of the time that the engine worked."""
    return {
        **usage._asdict(),
        "queued_s": round(queued_s, 6),
        "ttft_s": round(ttft_s, 6),
        "e2e_s": round(e2e_s, 6),
        "engine_s": round(engine_s, 6),
    }
