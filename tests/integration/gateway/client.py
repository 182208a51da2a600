"""Drives an ASGI application in this event loop, as a server would."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any


class Response:
    """What the application has sent so far."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.sends = 0
        self.complete = False
        self.changed = asyncio.Condition()

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of the SSE events; ``[DONE]`` as it is."""
        found = []
        for block in self.body.decode().split("\n\n"):
            if block.startswith("data: "):
                data = block.removeprefix("data: ")
                found.append(data if data == "[DONE]" else json.loads(data))
        return found

    def text(self) -> str:
        """The text of all chunks of the first choice."""
        parts = []
        for event in self.events():
            if event != "[DONE]" and event.get("choices"):
                choice = event["choices"][0]
                parts.append(choice["text"] if "text" in choice else choice["delta"].get("content", ""))
        return "".join(parts)

    async def until(self, wanted: bytes, timeout_s: float = 20.0) -> None:
        """Wait until the body holds this."""
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(lambda: wanted in self.body)


class Client:
    """Requests to one application."""

    def __init__(self, app: Any, key: str | None) -> None:
        self.app = app
        self.key = key

    async def post(self, path: str, body: Any, **more: Any) -> Response:
        """The whole response."""
        async with self.begin(path, body, **more) as (response, task, _):
            await task
        return response

    async def get(self, path: str) -> Response:
        return await self.post(path, b"", method="GET")

    @contextlib.asynccontextmanager
    async def begin(
        self,
        path: str,
        body: Any,
        *,
        method: str = "POST",
        key: str | None = "",
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[tuple[Response, asyncio.Task[None], asyncio.Event]]:
        """The response while it comes, the application's task, and an event that makes the client leave."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", **(headers or {})}
        use = self.key if key == "" else key
        if use is not None:
            sent["authorization"] = f"Bearer {use}"
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        }
        response, left = Response(), asyncio.Event()
        messages = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            async with response.changed:
                if message["type"] == "http.response.start":
                    response.status = message["status"]
                    response.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                else:
                    response.body += message["body"]
                    response.sends += 1
                    response.complete = not message.get("more_body", False)
                response.changed.notify_all()

        task = asyncio.create_task(self.app(scope, receive, send))
        try:
            yield response, task, left
        finally:
            left.set()
            async with asyncio.timeout(20):
                await task
