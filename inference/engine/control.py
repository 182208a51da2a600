"""Takes cancel, resend, drain, sleep and wake from the replica's control channel."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from channels_redis.pubsub import RedisPubSubChannelLayer

from inference.engine.links import REDIS_TROUBLE, Patience
from inference.engine.messages import Drain, Sleep, Wake
from inference.engine.retained import Retained
from inference.protocol import control_channel

MAX_JOBS_A_MESSAGE = 10_000

logger = logging.getLogger(__name__)


class _Cancel(msgspec.Struct, tag_field="type", tag="engine.cancel"):
    jobs: list[str]


class _Resend(msgspec.Struct, tag_field="type", tag="engine.resend"):
    reply_to: str
    jobs: list[tuple[str, int]]


class _Drain(msgspec.Struct, tag_field="type", tag="engine.drain"):
    deadline_s: float


class _Sleep(msgspec.Struct, tag_field="type", tag="engine.sleep"):
    rung: str
    deadline_s: float


class _Wake(msgspec.Struct, tag_field="type", tag="engine.wake"):
    pass


class Control:
    """Owned by the I/O thread."""

    def __init__(
        self,
        layer: RedisPubSubChannelLayer,
        *,
        replica: str,
        retained: Retained,
        cancel: Callable[[str], None],
        obey: Callable[[Drain | Sleep | Wake], None],
    ) -> None:
        self._layer = layer
        self._replica = replica
        self._retained = retained
        self._cancel = cancel
        self._obey = obey

    async def run(self) -> None:
        patience = Patience("listening for control messages")
        while True:
            try:
                message = await self._layer.receive(control_channel(self._replica))
                await self._handle(message)
            except REDIS_TROUBLE as error:
                await patience.wait(error)
            else:
                patience.succeeded()

    async def _handle(self, message: dict[str, Any]) -> None:
        try:
            command = msgspec.convert(message, _Cancel | _Resend | _Drain | _Sleep | _Wake)
        except msgspec.ValidationError as error:
            logger.warning("ignored a control message: %s", error)
            return
        match command:
            case _Cancel(jobs=job_ids):
                for job_id in job_ids[:MAX_JOBS_A_MESSAGE]:
                    self._cancel(job_id)
            case _Resend():
                await self._answer_resend(command, self._layer.send)
            case _Drain(deadline_s=deadline_s):
                self._obey(Drain(deadline_s))
            case _Sleep(rung=rung, deadline_s=deadline_s):
                self._obey(Sleep(rung, deadline_s))
            case _Wake():
                self._obey(Wake())

    async def _answer_resend(
        self, asked: _Resend, send: Callable[[str, dict[str, Any]], Awaitable[None]]
    ) -> None:
        events, alive, unknown = [], [], []
        for job_id, from_seq in asked.jobs[:MAX_JOBS_A_MESSAGE]:
            held = self._retained.since(job_id, from_seq)
            if held is None:
                unknown.append(job_id)
                continue
            events += held
            next_seq = self._retained.next_seq(job_id)
            if next_seq is not None:
                alive.append([job_id, next_seq])
        answer = {
            "type": "engine.events",
            "replica": self._replica,
            "events": events,
            "alive": alive,
            "unknown": unknown,
        }
        await send(asked.reply_to, answer)
