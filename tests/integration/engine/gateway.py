"""The gateway's side of the wire, as small as it can be."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import redis
from channels_redis.pubsub import RedisPubSubChannelLayer
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from inference.protocol import (
    DELTA,
    DONE,
    ERROR,
    JOB_GENERATE,
    GenerateRequest,
    ReplicaBeat,
    Sampling,
    beat_key,
    bell_key,
    control_channel,
    gateway_key,
    queue_name,
)

WAIT_S = 60.0


class TestGateway:
    """Enqueues with RQ's own code, and collects the events of each job."""

    __test__ = False

    def __init__(self, redis_url: str, deployment: str) -> None:
        self.connection = redis.Redis.from_url(redis_url)
        self.deployment = deployment
        self.layer = RedisPubSubChannelLayer(hosts=[redis_url])
        self.channel = ""
        self.events: dict[str, list[list[Any]]] = {}
        self.messages: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self.channel = await self.layer.new_channel()
        self.sign_in()
        self._reader = asyncio.create_task(self._read())

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self.layer.flush()
        self.connection.close()

    def sign_in(self) -> None:
        """Say that this gateway lives, for the length of a test."""
        self.connection.set(gateway_key(self.channel), 1)

    def submit(
        self,
        *,
        priority: str = "normal",
        ring: bool = True,
        job_id: str | None = None,
        deadline_s: float = 60.0,
        function: str = JOB_GENERATE,
        sampling: dict[str, Any] | None = None,
        **fields: Any,
    ) -> str:
        """Enqueue a job; its id."""
        if "messages" not in fields:
            fields.setdefault("prompts", ["hi"])
        request = GenerateRequest(
            request_id="r",
            reply_to=self.channel,
            deadline=time.time() + deadline_s,
            sampling=Sampling(**(sampling or {})),
            priority=priority,
            **fields,
        )
        job_id = job_id or uuid.uuid4().hex
        queue = Queue(
            queue_name(self.deployment, priority), connection=self.connection, serializer=JSONSerializer
        )
        queue.enqueue_call(
            function, kwargs={"request": msgspec.to_builtins(request)}, job_id=job_id, description=job_id
        )
        if ring:
            self.connection.rpush(bell_key(self.deployment), 1)
        return job_id

    async def until(self, met: Callable[[], Any], what: str) -> Any:
        """Wait for an event to make this true."""
        try:
            async with asyncio.timeout(WAIT_S), self._news:
                while not (found := met()):
                    await self._news.wait()
                return found
        except TimeoutError:
            raise AssertionError(f"{what} did not come; events: {self.events}") from None

    async def ended(self, job_id: str) -> list[list[Any]]:
        """All events of a job, once it is over."""
        await self.until(lambda: self._over(job_id), f"the end of {job_id}")
        return self.events[job_id]

    async def spoken(self, job_id: str, tokens: int = 1) -> None:
        """Wait until the job has said so many deltas."""
        await self.until(lambda: len(self.deltas(job_id)) >= tokens, f"{tokens} deltas of {job_id}")

    def deltas(self, job_id: str) -> list[list[Any]]:
        return [event for event in self.events.get(job_id, []) if event[2] == DELTA]

    def text(self, job_id: str, index: int = 0) -> str:
        return "".join(event[4] for event in self.deltas(job_id) if event[3] == index)

    def tokens(self, job_id: str, index: int = 0) -> list[int]:
        return [token for event in self.deltas(job_id) if event[3] == index for token in event[5]]

    async def cancel(self, replica: str, job_id: str) -> None:
        await self.layer.send(control_channel(replica), {"type": "engine.cancel", "jobs": [job_id]})

    async def resend(self, replica: str, *jobs: tuple[str, int]) -> dict[str, Any]:
        """Ask for events again; the answer."""
        before = len(self.messages)
        asked = {"type": "engine.resend", "reply_to": self.channel, "jobs": [list(job) for job in jobs]}
        await self.layer.send(control_channel(replica), asked)
        found = await self.until(
            lambda: [message for message in self.messages[before:] if "unknown" in message], "the resend"
        )
        return found[0]

    def job(self, job_id: str) -> Job:
        return Job.fetch(job_id, connection=self.connection, serializer=JSONSerializer)

    def queue(self, priority: str = "normal") -> Queue:
        return Queue(
            queue_name(self.deployment, priority), connection=self.connection, serializer=JSONSerializer
        )

    def beat(self, replica: str) -> ReplicaBeat | None:
        raw = self.connection.get(beat_key(replica))
        return None if raw is None else msgspec.json.decode(raw, type=ReplicaBeat)

    async def booked(self, job_id: str, status: str) -> Job:
        """The job, once RQ's record says so."""
        await poll(lambda: self.job(job_id).get_status() == status, f"{job_id} {status}")
        return self.job(job_id)

    async def _read(self) -> None:
        while True:
            message = await self.layer.receive(self.channel)
            async with self._news:
                self.messages.append(message)
                for event in message["events"]:
                    known = self.events.setdefault(event[0], [])
                    if event[1] == len(known):  # neither a gap nor a repetition
                        known.append(event)
                self._news.notify_all()

    def _over(self, job_id: str) -> bool:
        events = self.events.get(job_id)
        return bool(events) and events[-1][2] in (DONE, ERROR)


async def poll(met: Callable[[], Any], what: str, wait_s: float = WAIT_S) -> Any:
    """Look again and again at what sends no event."""
    try:
        async with asyncio.timeout(wait_s):
            while not (found := met()):  # noqa: ASYNC110 Redis and processes set no event
                await asyncio.sleep(0.01)
            return found
    except TimeoutError:
        raise AssertionError(f"{what} did not come") from None
