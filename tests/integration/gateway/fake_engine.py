"""A scripted engine worker: speaks inference.protocol over the real Channels layer, runs no model."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from inference.gateway.tasks import cancel_all
from inference.protocol import (
    ACCEPTED,
    DELTA,
    DONE,
    ERROR,
    GATEWAYS,
    HEARTBEAT_S,
    PRIORITIES,
    GenerateRequest,
    control_channel,
    queue_name,
)

Script = Callable[["FakeEngine", str, GenerateRequest], AsyncIterator[list[Any]]]


def words(*texts: str) -> Script:
    """Say these texts, a token each, for every choice; the job's own max_tokens is not looked at."""

    async def script(engine: FakeEngine, job_id: str, request: GenerateRequest) -> AsyncIterator[list[Any]]:
        done = len(request.resume_token_ids)
        choices = request.sampling.n * len(request.prompts or [""])
        for index in range(choices):
            for at, text in enumerate(texts[done:], start=done):
                finish = "stop" if at == len(texts) - 1 else None
                yield [DELTA, index, text, [at], None, finish, None]
        yield [DONE, usage(3, len(texts) * choices)]

    return script


def failing(code: str, message: str, param: str | None = None) -> Script:
    """Refuse the job at once."""

    async def script(engine: FakeEngine, job_id: str, request: GenerateRequest) -> AsyncIterator[list[Any]]:
        yield [ERROR, {"code": code, "message": message, "param": param}]

    script.accepts = False  # type: ignore[attr-defined]
    return script


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cached_tokens": 0,
        "queued_s": 0.0,
        "ttft_s": 0.0,
        "e2e_s": 0.0,
    }


class FakeEngine:
    """One replica. ``lose`` drops outgoing messages, ``gate`` holds the text back, ``pull`` may be paused."""

    def __init__(
        self, redis_url: str, channel_layer: Any, *, deployment: str = "echo", script: Script
    ) -> None:
        self.replica = uuid.uuid4().hex[:8]
        self.deployment = deployment
        self.script = script
        self.gate = asyncio.Event()
        self.gate.set()
        self.pulling = asyncio.Event()
        self.pulling.set()
        self.takes: int | None = None  # it pulls so many jobs more, and then no others
        self.lose: Callable[[dict[str, Any]], bool] = lambda message: False
        self.state = "ready"
        self.stage = ""
        self.batch = False  # send all events of a job in one message
        self.jobs: dict[str, GenerateRequest] = {}
        self.cancelled: list[str] = []
        self.resends: list[list[Any]] = []
        self.seen = asyncio.Condition()
        self._layer = channel_layer
        self._redis = Redis.from_url(redis_url)
        self._held: dict[str, list[list[Any]]] = {}
        self.busy = 0  # streams that it says it runs
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> FakeEngine:
        # Subscribe before the first beat: a gateway may answer it at once.
        self._layer_ready = asyncio.Event()
        self._tasks = [
            asyncio.create_task(work()) for work in (self._control, self._pull_jobs, self._beat_forever)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        await self._redis.aclose()

    async def kill(self) -> None:
        """Stop dead: no event, no beat, no good-bye."""
        await cancel_all([*self._tasks, *self._running.values()])
        self._tasks.clear()

    async def say_lost(self) -> None:
        """What the node says when it has seen the engine die."""
        await self._layer.group_send(
            GATEWAYS, {"type": "replica.lost", "replica": self.replica, "reason": "killed"}
        )

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait for something that this engine is to see."""
        async with asyncio.timeout(timeout_s), self.seen:
            await self.seen.wait_for(condition)

    async def idle(self, timeout_s: float = 60.0) -> None:
        """Until every job that was pulled has been answered in full."""
        async with asyncio.timeout(timeout_s):
            while self._running:
                await asyncio.wait(list(self._running.values()))

    async def beat(self) -> None:
        await self._layer.group_send(
            GATEWAYS,
            {
                "type": "replica.beat",
                "replica": self.replica,
                "deployment": self.deployment,
                "worker": f"worker-{self.replica}",
                "state": self.state,
                "stage": self.stage,
                "at": time.time(),
                "running": self.busy,
                "max_streams": 64,
                "jobs_per_s": 2.0,
                "context_length": 2048,
            },
        )

    async def _beat_forever(self) -> None:
        await self._layer_ready.wait()
        while True:
            with contextlib.suppress(OSError, RedisError):
                await self.beat()
            await asyncio.sleep(HEARTBEAT_S)

    async def _pull_jobs(self) -> None:
        while True:
            await self.pulling.wait()
            pulled = None
            with contextlib.suppress(OSError, RedisError):
                pulled = await self._pull()
            if pulled is None:
                continue
            job_id, request = pulled
            if self.takes is not None:
                self.takes -= 1
                if not self.takes:
                    self.pulling.clear()
            await self._note(self.jobs.__setitem__, job_id, request)
            task = asyncio.create_task(self._answer(job_id, request))
            self._running[job_id] = task
            task.add_done_callback(lambda _, job_id=job_id: self._running.pop(job_id, None))

    async def _pull(self) -> tuple[str, GenerateRequest] | None:
        queues = [f"rq:queue:{queue_name(self.deployment, priority)}" for priority in PRIORITIES]
        found = await self._redis.blpop(queues, timeout=1)
        if found is None:
            return None
        job_id = found[1].decode()
        key = f"rq:job:{job_id}"
        data = await self._redis.hget(key, "data")
        if data is None:
            return None
        await self._redis.hset(key, mapping={"status": "started", "worker_name": f"worker-{self.replica}"})
        _, _, _, arguments = msgspec.json.decode(zlib.decompress(data))
        return job_id, msgspec.convert(arguments["request"], GenerateRequest)

    async def _answer(self, job_id: str, request: GenerateRequest) -> None:
        events: list[list[Any]] = []
        self._held[job_id] = events
        ready: list[list[Any]] = []
        if getattr(self.script, "accepts", True):
            ready.append([ACCEPTED, self.replica, [3] * len(request.prompts or [""])])
        if not self.batch:
            await self._emit(job_id, request.reply_to, ready)
            ready = []
        async for part in self.script(self, job_id, request):
            await self.gate.wait()
            ready.append(part)
            if not self.batch:
                await self._emit(job_id, request.reply_to, ready)
                ready = []
        await self._emit(job_id, request.reply_to, ready)
        with contextlib.suppress(OSError, RedisError):
            await self._redis.delete(f"rq:job:{job_id}")

    async def _emit(self, job_id: str, reply_to: str, parts: list[list[Any]]) -> None:
        if not parts:
            return
        held = self._held[job_id]
        first = len(held)
        held.extend([job_id, first + at, *part] for at, part in enumerate(parts))
        await self._send(reply_to, {"type": "engine.events", "replica": self.replica, "events": held[first:]})

    async def _send(self, channel: str, message: dict[str, Any]) -> None:
        if not self.lose(message):
            with contextlib.suppress(OSError, RedisError):
                await self._layer.send(channel, message)

    async def _control(self) -> None:
        channel = control_channel(self.replica)
        self._layer_ready.set()
        while True:
            message = await self._layer.receive(channel)
            if message["type"] == "engine.cancel":
                for job_id in message["jobs"]:
                    if job_id in self._running:
                        self._running[job_id].cancel()
                    await self._note(self.cancelled.append, job_id)
            elif message["type"] == "engine.resend":
                await self._note(self.resends.append, message["jobs"])
                await self._resend(message)

    async def _resend(self, message: dict[str, Any]) -> None:
        events, alive, unknown = [], [], []
        for job_id, from_seq in message["jobs"]:
            held = self._held.get(job_id)
            if held is None:
                unknown.append(job_id)
            else:
                events += held[from_seq:]
                alive.append([job_id, len(held)])
        await self._send(
            message["reply_to"],
            {
                "type": "engine.events",
                "replica": self.replica,
                "events": events,
                "alive": alive,
                "unknown": unknown,
                "resent": True,
            },
        )

    async def _note(self, change: Callable[..., Any], *arguments: Any) -> None:
        async with self.seen:
            change(*arguments)
            self.seen.notify_all()
