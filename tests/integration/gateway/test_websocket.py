"""Frames over one socket."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from decimal import Decimal
from typing import Any

import pytest

from inference.protocol import DELTA
from routing.core.cost import Prices
from tests.integration.gateway.conftest import KEY, Gateway, heard
from tests.integration.gateway.fake_engine import FakeEngine, failing, words
from tests.integration.gateway.test_fallback import both_ready, engine, has_table, two

CHAT = {"model": "acme/echo", "messages": [{"role": "user", "content": "say"}]}


class SocketClient:
    """Drives the ASGI websocket application in this event loop."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        key: str | None = KEY,
        subprotocols: list[str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        sent = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        if key is not None:
            sent.append((b"authorization", f"Bearer {key}".encode()))
        scope = {
            "type": "websocket",
            "path": "/ws/v1/completions",
            "headers": sent,
            "subprotocols": subprotocols or [],
        }
        self._app = gateway.socket_app(scope, self._to_app.get, self._from_app.put)

    async def __aenter__(self) -> SocketClient:
        self.task = asyncio.create_task(self._app)
        self._to_app.put_nowait({"type": "websocket.connect"})
        self.accepted = await self.message()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()
        async with asyncio.timeout(20):
            await self.task

    def leave(self) -> None:
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": 1000})

    def send(self, frame: Any) -> None:
        text = frame if isinstance(frame, str) else json.dumps(frame)
        self._to_app.put_nowait({"type": "websocket.receive", "text": text})

    def ask(self, name: str, **body: Any) -> None:
        self.send({"type": "request", "id": name, "endpoint": "chat.completions", "body": {**CHAT, **body}})

    async def message(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            return await self._from_app.get()

    async def frame(self) -> dict[str, Any]:
        return json.loads((await self.message())["text"])

    async def until_done(self, name: str) -> list[dict[str, Any]]:
        """The frames of one request, to its last."""
        found = []
        while not found or found[-1]["type"] not in ("done", "error", "cancelled"):
            frame = await self.frame()
            if frame.get("id") == name:
                found.append(frame)
        return found


async def test_a_request_that_does_not_stream_gets_one_result(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("Hello")),
        SocketClient(gateway) as client,
    ):
        client.ask("a")
        result, done = await client.until_done("a")
    assert result["type"] == "result"
    assert result["data"]["choices"][0]["message"]["content"] == "Hello"
    assert done == {"type": "done", "id": "a"}


async def test_a_stream_comes_in_chunks_and_may_be_cancelled_while_another_goes_on(open_gateway):
    async def talks(engine, job_id, request):
        yield [DELTA, 0, "one", [1], None, None, None]
        await asyncio.Event().wait()

    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=talks) as engine,
        SocketClient(gateway) as client,
    ):
        client.ask("a", stream=True)
        while (frame := await client.frame())["data"]["choices"][0]["delta"].get("content") != "one":
            assert frame["type"] == "chunk"
        engine.script = words("other")
        client.ask("b", stream=True)
        assert (await client.until_done("b"))[-1]["type"] == "done"
        client.send({"type": "cancel", "id": "a"})
        assert (await client.until_done("a"))[-1] == {"type": "cancelled", "id": "a"}
        await engine.until(lambda: bool(engine.cancelled))


async def test_a_stream_that_waits_for_its_model_is_told_stage_bytes_and_seconds(open_gateway):
    async with open_gateway() as gateway, SocketClient(gateway) as client:
        told = {
            "status": "loading",
            "stage": "fetching files",
            "eta_s": 8.0,
            "done_bytes": 5,
            "total_bytes": 20,
        }
        gateway.runtime.hub.dispatch({"type": "deployments.outlook", "deployments": {"echo": told}})
        frame = {"type": "request", "id": "a", "endpoint": "chat.completions", "status": True}
        client.send({**frame, "body": {**CHAT, "stream": True}})
        found = await client.frame()
        client.send({"type": "cancel", "id": "a"})
        assert (await client.until_done("a"))[-1]["type"] == "cancelled"
    assert (found["type"], found["id"]) == ("status", "a")
    assert {**found["data"], "eta_s": 0, "waited_s": 0} == {**told, "eta_s": 0, "waited_s": 0}
    assert 0.0 < found["data"]["eta_s"] <= 8.0


async def test_a_refusal_says_when_to_come_again(open_gateway):
    async with open_gateway() as gateway, SocketClient(gateway) as client:
        told = {"status": "asleep", "stage": "Others have its memory.", "eta_s": 20.2}
        gateway.runtime.hub.dispatch({"type": "deployments.outlook", "deployments": {"echo": told}})
        client.ask("a", deadline_ms=5000)
        (error,) = await client.until_done("a")
    assert error["error"]["code"] == "model_loading"
    assert error["retry_after_s"] == 21


async def test_a_socket_that_closes_cancels_all_its_requests(open_gateway):
    async def forever(engine, job_id, request):
        await asyncio.Event().wait()
        yield []

    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=forever) as engine,
        SocketClient(gateway) as client,
    ):
        client.ask("a")
        client.ask("b", stream=True)
        await engine.until(lambda: len(engine.jobs) == 2)
        client.leave()
        await client.task
        await engine.until(lambda: len(set(engine.cancelled)) == 2)
        assert len(gateway.runtime.hub) == 0


async def test_an_engines_error_is_the_envelopes_error_and_the_socket_stays_open(open_gateway):
    refusing = failing("context_length_exceeded", "too long", "messages")
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=refusing),
        SocketClient(gateway) as client,
    ):
        for name in ("a", "b"):
            client.ask(name)
            (frame,) = await client.until_done(name)
            assert frame["error"]["code"] == "context_length_exceeded"
            assert set(frame["error"]) == {"message", "type", "param", "code"}


async def test_frames_that_make_no_sense_are_answered_and_skipped(open_gateway):
    async with open_gateway() as gateway, SocketClient(gateway) as client:
        wrong = [
            ("{", None, None),
            ("[" * 100_000, None, None),
            ({"type": "dance"}, None, "type"),
            ({"type": "request", "id": "a"}, None, "endpoint"),
            ({"type": "request", "id": "", "endpoint": "completions", "body": {}}, None, "id"),
            (
                {"type": "request", "id": "a", "endpoint": "completions", "body": {"model": "m"}},
                "a",
                "prompt",
            ),
            ({"type": "request", "id": "a", "endpoint": "completions", "body": 5}, "a", None),
            ({"type": "cancel", "id": "nobody"}, "nobody", "id"),
            ({"type": "auth", "api_key": "x"}, None, "type"),
        ]
        for frame, name, param in wrong:
            client.send(frame)
            answer = await client.frame()
            assert (answer["type"], answer["id"], answer["error"]["param"]) == ("error", name, param), frame


async def test_the_key_may_come_in_a_subprotocol_or_in_the_first_message(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("x")),
    ):
        by_protocol = ["mmserve", f"mmserve.bearer.{KEY}"]
        async with SocketClient(gateway, key=None, subprotocols=by_protocol) as client:
            assert client.accepted["subprotocol"] == "mmserve"
            client.ask("a")
            assert (await client.until_done("a"))[-1]["type"] == "done"
        async with SocketClient(gateway, key=None) as client:
            client.send({"type": "auth", "api_key": KEY})
            client.ask("a")
            assert (await client.until_done("a"))[-1]["type"] == "done"


async def test_a_socket_without_a_good_key_is_told_and_closed(open_gateway):
    async with open_gateway(socket_auth_s=0.05) as gateway:
        async with SocketClient(gateway, key="mm-unknown") as client:
            assert (await client.frame())["error"]["code"] == "invalid_api_key"
            assert await client.message() == {"type": "websocket.close", "code": 4401}
        async with SocketClient(gateway, key=None) as client:
            assert "in time" in (await client.frame())["error"]["message"]
            assert (await client.message())["type"] == "websocket.close"


async def test_a_key_revoked_while_the_socket_is_open_starts_no_more_requests(open_gateway):
    async with open_gateway() as gateway, SocketClient(gateway) as client:
        del gateway.keys.grants[KEY]
        client.ask("a")
        assert (await client.until_done("a"))[-1]["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("wish", ["handshake", "body"])
async def test_a_wish_of_the_handshake_is_one_of_every_request_and_the_bodys_own_is_kept(open_gateway, wish):
    headers = {"x-mmserve-no-fallback": "true"} if wish == "handshake" else {"x-mmserve-prefer": "second"}
    body = {"no_fallback": wish == "body"}
    async with open_gateway() as gateway:
        await has_table(gateway, two())
        async with (
            engine(gateway, "first", failing("engine_lost", "it is out of order")),
            engine(gateway, "second", failing("engine_lost", "this one as well")),
            SocketClient(gateway, headers=headers) as client,
        ):
            await both_ready(gateway)
            for name in ("a", "b"):
                client.ask(name, model="either", mmserve=body)
                (error,) = await client.until_done(name)
                assert error["error"]["code"] == "engine_lost"


async def test_of_the_ceilings_of_handshake_and_body_the_lower_one_counts(open_gateway):
    async with open_gateway() as gateway:
        table = gateway.table_with(revision=2)
        prices = Prices.of(per_million_output=Decimal(1))
        versions = {key: dataclasses.replace(one, prices=prices) for key, one in table.versions.items()}
        await has_table(gateway, dataclasses.replace(table, versions=versions))
        headers = {"x-mmserve-max-cost-usd": "0.00005"}
        async with (
            FakeEngine(gateway.redis_url, gateway.layer, script=words("Hello")),
            SocketClient(gateway, headers=headers) as client,
        ):
            await heard(gateway)
            for name, most, tokens, served in (
                ("a", None, 10, True),
                ("b", None, 100, False),
                ("c", 1.0, 100, False),
                ("d", 0.000005, 10, False),
            ):
                client.ask(name, max_tokens=tokens, mmserve={"max_cost_usd": most})
                last = (await client.until_done(name))[-1]
                assert last["type"] == ("done" if served else "error"), (name, last)
                assert served or last["error"]["code"] == "no_eligible_candidate"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("x-mmserve-max-cost-usd", "cheap", "invalid_value"),
        ("x-mmserve-max-ttft-ms", "-1", "invalid_value"),
        ("x-mmserve-no-fallback", "perhaps", "invalid_value"),
        ("x-mmserve-colour", "red", "unknown_parameter"),
    ],
)
async def test_a_wish_that_means_nothing_refuses_the_handshake_by_name(open_gateway, name, value, code):
    async with open_gateway() as gateway, SocketClient(gateway, headers={name: value}) as client:
        error = (await client.frame())["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", name, code)
        assert await client.message() == {"type": "websocket.close", "code": 4400}


async def test_requests_and_bytes_of_a_socket_are_bounded(open_gateway):
    async def forever(engine, job_id, request):
        await asyncio.Event().wait()
        yield []

    async with (
        open_gateway(max_socket_requests=1, max_socket_message_bytes=1000) as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=forever) as engine,
        SocketClient(gateway) as client,
    ):
        client.ask("a")
        await engine.until(lambda: bool(engine.jobs))
        client.ask("a")
        assert "running already" in (await client.frame())["error"]["message"]
        client.ask("b")
        assert (await client.frame())["error"]["code"] == "rate_limit_exceeded"
        client.send("x" * 1001)
        assert (await client.frame())["error"]["code"] == "payload_too_large"
        assert (await client.message())["type"] == "websocket.close"
