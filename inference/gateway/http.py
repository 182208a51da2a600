"""The HTTP endpoints of the hot path, as one bare ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from inference.gateway import metrics
from inference.gateway.admission import Rates, Refused
from inference.gateway.auth import KeyGrant, authorize, bearer_key
from inference.gateway.bodies import parse, parse_either
from inference.gateway.chunks import Chunks, encode
from inference.gateway.explain import explanation
from inference.gateway.flight import GONE, Flight
from inference.gateway.generation import CANCELLED, Generation, answer_id, new_id
from inference.gateway.headers import (
    Headers,
    cost_header,
    error_headers,
    header,
    note_caller,
    rate_headers,
    request_id_of,
)
from inference.gateway.plan import Plan
from inference.gateway.runtime import GatewayRuntime
from inference.gateway.streaming import ClientGone, answer_of, chunks_of
from inference.gateway.wishes import tightened, wishes_of_headers
from mmserve.errors import (
    InvalidRequest,
    MethodNotAllowed,
    MmserveError,
    PayloadTooLarge,
    ServerStopping,
)

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

COMPLETIONS, CHAT, EXPLAIN = "/v1/completions", "/v1/chat/completions", "/v1/routing/explain"
HEALTHZ, READYZ = "/healthz", "/readyz"
PREDICT = re.compile(r"/v1/models/(.+)/predict", re.DOTALL)
METHODS = {
    COMPLETIONS: ("POST",),
    CHAT: ("POST",),
    EXPLAIN: ("POST",),
    HEALTHZ: ("GET", "HEAD"),
    READYZ: ("GET", "HEAD"),
}
SSE_DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
STATUS_HEADER = b"x-mmserve-status"


class HotPath:
    """POST completions, chat, predict, explain; GET healthz and readyz."""

    def __init__(self, runtime: Callable[[], GatewayRuntime]) -> None:
        self._runtime = runtime

    @staticmethod
    def owns(path: str) -> bool:
        """Whether this application answers the path, rather than Django."""
        return path in METHODS or PREDICT.fullmatch(path) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        exchange = Exchange(self._runtime(), scope, receive, send)
        allowed = METHODS.get(path, ("POST",))
        if path not in (HEALTHZ, READYZ):
            try:
                exchange.runtime.refuse_if_stopping()
            except ServerStopping as error:
                await exchange.refuse(error, [(b"connection", b"close")])
                return
        if method not in allowed:
            await exchange.refuse(
                MethodNotAllowed(f"{method} is not allowed for {path}."),
                [(b"allow", ", ".join(allowed).encode())],
            )
        elif path == HEALTHZ:
            await exchange.reply(200, encode({"status": "ok"}))
        elif path == READYZ:
            checks = await exchange.runtime.checks()
            ready = all(found == "ok" for found in checks.values())
            body = {"status": "ready" if ready else "not ready", "checks": checks}
            await exchange.reply(200 if ready else 503, encode(body))
        else:
            await exchange.answer(path)


class Exchange:
    """One request and its response."""

    def __init__(self, runtime: GatewayRuntime, scope: Scope, receive: Receive, send: Send) -> None:
        self.runtime = runtime
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id_of(scope["headers"]) or new_id().encode()
        self._endpoint = ""
        self._started = False
        self._gone = False
        self._flight: Flight | None = None

    async def answer(self, path: str) -> None:
        """Authenticate, parse, and answer; every refusal is OpenAI's envelope with its status."""
        try:
            grant = await authorize(
                self.runtime.authenticator, bearer_key(self._scope["headers"]), now=time.time()
            )
            body = await self._body()
            if path == EXPLAIN:
                generator = await self.runtime.ready()
                plan = self._told(parse_either(body))
                decision = await generator.decide(plan, new_id(), grant)
                preference = generator.affinity.look(plan, decision.chosen) if decision.chosen else None
                await self.reply(200, encode(explanation(decision, preference)))
                return
            await self._generate(self._plan(path, body), grant)
        except MmserveError as error:
            await self.refuse(error)
        except Refused as refused:
            await self.refuse(refused.error, rates=refused.rates)
        except ClientGone:
            metrics.count(self._endpoint, metrics.CLIENT_GONE, self._served_id)

    @property
    def _served_id(self) -> str:
        """Who serves it: after a fallback, the other one."""
        return self._flight.deployment.served_id if self._flight is not None else ""

    def _plan(self, path: str, body: bytes) -> Plan:
        if path == COMPLETIONS:
            plan = parse(body, "completions")
        elif path == CHAT:
            plan = parse(body, "chat.completions")
        else:
            found = PREDICT.fullmatch(path)
            assert found is not None, "HotPath.owns() lets no other path through"
            plan = parse_either(body, found[1])
        self._endpoint = plan.endpoint
        return self._told(plan)

    def _told(self, plan: Plan) -> Plan:
        """What the headers say of the caller, and wish for: that tightens what the body does."""
        headers = self._scope["headers"]
        note_caller(plan, headers)
        plan.wishes = tightened(plan.wishes, wishes_of_headers(headers))
        return plan

    async def _body(self) -> bytes:
        kind = header(self._scope["headers"], b"content-type")
        if kind is not None and not _is_json(kind):
            raise InvalidRequest("The content-type must be application/json.", code="unsupported_media_type")
        most = self.runtime.config.max_body_bytes
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise PayloadTooLarge(f"The body is larger than {most} bytes.")
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _generate(self, plan: Plan, grant: KeyGrant) -> None:
        generator = await self.runtime.ready()
        watcher = asyncio.create_task(self._watch())
        outcome, status = CANCELLED, metrics.CLIENT_GONE
        generation: Generation | None = None
        metrics.in_flight.inc()
        try:
            generation = await generator.open(plan, grant)
            self.runtime.mirror.consider(generation)
            self._flight = generation.flight
            if plan.stream:
                # While it is held for a model that sleeps, the client sees comments, and events if it asked.
                generation.flight.idle_after_s = self.runtime.config.keep_alive_s
                wants = header(self._scope["headers"], STATUS_HEADER) or b""
                generation.flight.wants_status = wants.strip().lower() == b"events"
            if self._gone:
                raise ClientGone
            if plan.stream:
                await self._stream(generation)
            else:
                await self._whole(generation)
            outcome, status = "completed", 200
            metrics.count(self._endpoint, status, self._served_id)
            metrics.observe(generation.flight, time.monotonic())
        except MmserveError as error:
            outcome, status = error.error_code or "error", error.status
            raise
        finally:
            metrics.in_flight.dec()
            watcher.cancel()
            if generation is not None:
                await generator.close(generation, outcome=outcome, status=status)

    async def _whole(self, generation: Generation) -> None:
        created = int(time.time())
        body = await answer_of(generation, answer_id(generation), created)
        headers = self._headers_of(generation, b"application/json") + cost_header(generation, final=True)
        await self._start(200, headers, len(body))
        await self._send({"type": "http.response.body", "body": body})

    async def _stream(self, generation: Generation) -> None:
        flight = generation.flight
        chunks = Chunks(generation.plan, answer_id(generation), int(time.time()))
        try:
            async with contextlib.aclosing(chunks_of(generation, chunks)) as parts:
                async for found in parts:
                    body = b"".join(found)
                    if not self._started:
                        headers = self._headers_of(generation, b"text/event-stream; charset=utf-8")
                        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
                        headers += cost_header(generation, final=False)
                        await self._start(200, headers)
                    elif not found:
                        body = KEEP_ALIVE
                    # An empty body sends the headers: an engine has the prompt.
                    await self._send({"type": "http.response.body", "body": body, "more_body": True})
                    flight.sent_at = time.monotonic()
        except MmserveError as error:
            if self._started:
                metrics.count(self._endpoint, error.status, self._served_id)
                last = b"data: " + encode(error.envelope()) + b"\n\n" + SSE_DONE
                await self._send({"type": "http.response.body", "body": last})
            raise
        await self._send({"type": "http.response.body", "body": SSE_DONE})

    async def _watch(self) -> None:
        """Notice that the client left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._flight is not None:
            self._flight.push([self._flight.job_id, -1, GONE])

    async def refuse(
        self, error: MmserveError, more: Headers | None = None, *, rates: Rates | None = None
    ) -> None:
        """OpenAI's error envelope; nothing if the response has begun (it has carried the error already)."""
        if self._started:
            return
        metrics.count(self._endpoint, error.status, self._served_id)
        await self.reply(
            error.status, encode(error.envelope()), error_headers(error) + rate_headers(rates) + (more or [])
        )

    async def reply(self, status: int, body: bytes, more: Headers | None = None) -> None:
        """A JSON body, whole."""
        headers = [(b"content-type", b"application/json"), (b"x-request-id", self._request_id), *(more or [])]
        revision = self.runtime.table.revision
        if revision is not None:
            headers.append((b"x-mmserve-revision", b"%d" % revision))
        await self._start(status, headers, len(body))
        await self._send(
            {"type": "http.response.body", "body": b"" if self._scope["method"] == "HEAD" else body}
        )

    async def _start(self, status: int, headers: Headers, length: int | None = None) -> None:
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def _headers_of(self, generation: Generation, content_type: bytes) -> Headers:
        decision = generation.decision
        return [
            (b"content-type", content_type),
            (b"x-request-id", self._request_id),
            (b"x-mmserve-model", generation.flight.deployment.served_id.encode()),
            (b"x-mmserve-revision", b"%d" % decision.revision),
            (b"x-mmserve-decision", decision.id.encode()),
            *rate_headers(generation.rates),
        ]


def _is_json(kind: bytes) -> bool:
    kind = kind.partition(b";")[0].strip().lower()
    return kind == b"application/json" or kind.endswith(b"+json")
