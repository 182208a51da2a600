"""``/ws/v1/completions``: several requests at once on one socket, answered in frames that carry their id."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference.gateway import metrics
from inference.gateway.admission import Refused
from inference.gateway.auth import authorize, bearer_key
from inference.gateway.bodies import parse
from inference.gateway.chunks import Chunks, encode
from inference.gateway.flight import GONE, Flight
from inference.gateway.generation import CANCELLED, Generation, answer_id
from inference.gateway.headers import note_caller
from inference.gateway.http import Receive, Scope, Send
from inference.gateway.runtime import GatewayRuntime
from inference.gateway.streaming import ClientGone, answer_of, chunks_of
from inference.gateway.strict_json import decode
from inference.gateway.wishes import tightened, wishes_of_headers
from mmserve.errors import (
    AuthenticationFailed,
    InvalidRequest,
    MmserveError,
    PayloadTooLarge,
    RateLimitExceeded,
    ServerStopping,
)
from routing.core.cost import in_usd
from routing.core.route import NO_WISHES

PATH = "/ws/v1/completions"
SUBPROTOCOL = "mmserve"
BEARER_SUBPROTOCOL = "mmserve.bearer."
# A socket is closed with this and the error's HTTP status: a library may send no code of the protocol's own.
CLOSE_CODES = 4000

Id = Annotated[str, Meta(min_length=1, max_length=128)]


class AuthFrame(msgspec.Struct, tag_field="type", tag="auth", forbid_unknown_fields=True):
    """The first message, where neither a header nor a subprotocol carried the key."""

    api_key: str


class RequestFrame(msgspec.Struct, tag_field="type", tag="request", forbid_unknown_fields=True):
    """One request; ``body`` is the OpenAI body of the endpoint."""

    id: Id
    endpoint: Literal["completions", "chat.completions"]
    body: msgspec.Raw
    status: bool = False  # of a stream: say each second what it waits for


class CancelFrame(msgspec.Struct, tag_field="type", tag="cancel", forbid_unknown_fields=True):
    """Stop one request."""

    id: Id


_frames = msgspec.json.Decoder(AuthFrame | RequestFrame | CancelFrame)


class SocketApp:
    """The ASGI application for the websocket protocol."""

    def __init__(self, runtime: Callable[[], GatewayRuntime]) -> None:
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        if scope["path"] != PATH:
            await send({"type": "websocket.close"})
            return
        await Socket(self._runtime(), scope, receive, send).run()


class _Running:
    """One request of a socket: its task, and its flight once it was admitted."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.flight: Flight | None = None
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        if self.flight is not None:
            self.flight.push([self.flight.job_id, -1, GONE])


class Socket:
    """One connection. The reading loop owns ``_running``; each request has a task that sends its frames."""

    def __init__(self, runtime: GatewayRuntime, scope: Scope, receive: Receive, send: Send) -> None:
        self._runtime = runtime
        self._config = runtime.config
        self._scope = scope
        self._receive = receive
        self._send = send
        self._key: str | None = None
        self._wishes = NO_WISHES  # of every request here; its body tightens them
        self._running: dict[str, _Running] = {}
        self._open = True

    async def run(self) -> None:
        """Until the client leaves."""
        offered = self._scope.get("subprotocols") or []
        bearer = next((one for one in offered if one.startswith(BEARER_SUBPROTOCOL)), None)
        chosen = SUBPROTOCOL if SUBPROTOCOL in offered else bearer
        await self._send({"type": "websocket.accept", "subprotocol": chosen})
        leaving = asyncio.create_task(self._leave_when_stopping())
        try:
            self._runtime.refuse_if_stopping()
            self._wishes = wishes_of_headers(self._scope["headers"])
            await self._authenticate(bearer)
            while True:
                await self._take(await self._message())
        except ClientGone:
            self._open = False
        except MmserveError as error:  # of the door: a request's own errors are answered by its task
            await self._error(None, error)
            await self._send({"type": "websocket.close", "code": CLOSE_CODES + error.status})
        finally:
            leaving.cancel()
            self._open = False
            tasks = [one.task for one in self._running.values() if one.task is not None]
            for one in list(self._running.values()):
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave_when_stopping(self) -> None:
        """Close once the gateway has been told to stop and nothing runs here any more."""
        await self._runtime.stopping.wait()
        while self._running:
            await asyncio.wait([one.task for one in self._running.values() if one.task is not None])
        if self._open:
            self._open = False
            await self._send({"type": "websocket.close", "code": CLOSE_CODES + ServerStopping.status})

    async def _authenticate(self, bearer: str | None) -> None:
        self._key = bearer_key(self._scope["headers"])
        if self._key is None and bearer is not None:
            self._key = bearer.removeprefix(BEARER_SUBPROTOCOL)
        if self._key is None:
            try:
                async with asyncio.timeout(self._config.socket_auth_s):
                    frame = decode(await self._message(), _frames)
            except TimeoutError:
                raise AuthenticationFailed("No access key came in time.") from None
            if not isinstance(frame, AuthFrame):
                raise AuthenticationFailed('The first message must be {"type": "auth", "api_key": …}.')
            self._key = frame.api_key
        await authorize(self._runtime.authenticator, self._key, now=time.time())

    async def _message(self) -> bytes:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise ClientGone
        text = message.get("text")
        data = message.get("bytes") or b"" if text is None else text.encode()
        if len(data) > self._config.max_socket_message_bytes:
            raise PayloadTooLarge(f"A message is larger than {self._config.max_socket_message_bytes} bytes.")
        return data

    async def _take(self, data: bytes) -> None:
        frame_id: str | None = None
        try:
            frame = decode(data, _frames)
            if isinstance(frame, AuthFrame):
                raise InvalidRequest("This socket has its access key already.", param="type")
            frame_id = frame.id
            if isinstance(frame, CancelFrame):
                running = self._running.get(frame.id)
                if running is None:
                    raise InvalidRequest(f"No request {frame.id!r} is running.", param="id")
                running.cancel()
            else:
                self._begin(frame)
        except MmserveError as error:
            await self._error(frame_id, error)

    def _begin(self, frame: RequestFrame) -> None:
        if frame.id in self._running:
            raise InvalidRequest(f"A request {frame.id!r} is running already.", param="id")
        self._runtime.refuse_if_stopping()
        if len(self._running) >= self._config.max_socket_requests:
            raise RateLimitExceeded(
                f"{len(self._running)} requests run on this socket; no more may.", retry_after_s=1.0
            )
        running = self._running[frame.id] = _Running()
        running.task = asyncio.create_task(self._answer(frame, running))
        running.task.add_done_callback(lambda _: self._running.pop(frame.id, None))

    async def _answer(self, frame: RequestFrame, running: _Running) -> None:
        try:
            await self._generate(frame, running)
        except ClientGone:
            await self._frame({"type": "cancelled", "id": frame.id})
        except Refused as refused:
            await self._error(frame.id, refused.error)
        except MmserveError as error:
            await self._error(frame.id, error)

    async def _generate(self, frame: RequestFrame, running: _Running) -> None:
        grant = await authorize(self._runtime.authenticator, self._key, now=time.time())
        plan = parse(bytes(frame.body), frame.endpoint)
        note_caller(plan, self._scope["headers"])
        plan.wishes = tightened(plan.wishes, self._wishes)
        generator = await self._runtime.ready()
        generation: Generation | None = None
        outcome, status = CANCELLED, metrics.CLIENT_GONE
        metrics.in_flight.inc()
        try:
            generation = await generator.open(plan, grant)
            self._runtime.mirror.consider(generation)
            running.flight = generation.flight
            generation.flight.wants_status = frame.status and plan.stream
            if running.cancelled:
                raise ClientGone
            if plan.stream:
                await self._stream(frame, generation)
            else:
                body = await answer_of(generation, answer_id(generation), int(time.time()))
                await self._text(b'{"type":"result","id":%s,"data":%s}' % (encode(frame.id), body))
            outcome, status = "completed", 200
            metrics.observe(generation.flight, time.monotonic())
        except Refused as refused:
            outcome, status = refused.error.error_code or "error", refused.error.status
            raise
        except MmserveError as error:
            outcome, status = error.error_code or "error", error.status
            raise
        finally:
            metrics.in_flight.dec()
            served_id = generation.flight.deployment.served_id if generation else ""
            metrics.count(plan.endpoint, status, served_id)
            if generation is not None:
                await generator.close(generation, outcome=outcome, status=status)
        done = {"type": "done", "id": frame.id}
        if generation.prices.priced:
            done["cost_usd"] = in_usd(generation.cost_nano)
        await self._frame(done)

    async def _stream(self, frame: RequestFrame, generation: Generation) -> None:
        chunks = Chunks(
            generation.plan,
            answer_id(generation),
            int(time.time()),
            before=b'{"type":"chunk","id":' + encode(frame.id) + b',"data":',
            after=b"}",
            status=b'{"type":"status","id":' + encode(frame.id) + b',"data":',
        )
        async with contextlib.aclosing(chunks_of(generation, chunks)) as found:
            async for some in found:
                for chunk in some:
                    await self._text(chunk)

    async def _error(self, frame_id: str | None, error: MmserveError) -> None:
        frame = {"type": "error", "id": frame_id, **error.envelope()}
        if error.retry_after_s is not None:
            frame["retry_after_s"] = max(1, math.ceil(error.retry_after_s))
        await self._frame(frame)

    async def _frame(self, frame: dict[str, Any]) -> None:
        await self._text(encode(frame))

    async def _text(self, text: bytes) -> None:
        if self._open:
            await self._send({"type": "websocket.send", "text": text.decode()})
