"""The HTTP endpoints, whole and streamed, against a scripted engine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from inference.protocol import CONTROLLER_CHANNEL, DELTA, ERROR, GATEWAYS, GenerateRequest
from tests.integration.gateway.conftest import Gateway, heard
from tests.integration.gateway.fake_engine import FakeEngine, failing, words
from tests.integration.gateway.waiting import until

COMPLETION = {"model": "acme/echo", "prompt": "say", "max_tokens": 8}
CHAT = {"model": "acme/echo", "messages": [{"role": "user", "content": "say"}]}


def engine(gateway: Gateway, *texts: str) -> FakeEngine:
    return FakeEngine(gateway.redis_url, gateway.layer, script=words(*texts))


async def test_a_completion_is_answered_in_one_body(open_gateway):
    async with (
        open_gateway() as gateway,
        engine(gateway, "Hello", " you"),
    ):
        response = await gateway.client.post("/v1/completions", COMPLETION)
    assert response.status == 200, response.body
    body = response.json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "Hello you", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["total_tokens"] == 5
    assert response.headers["x-mmserve-model"] == "acme/echo@1"
    assert response.headers["x-mmserve-revision"] == "1"
    assert body["id"] == "cmpl-" + response.headers["x-mmserve-decision"]


async def test_a_chat_stream_opens_with_the_role_and_ends_with_an_empty_delta_and_done(open_gateway):
    async with (
        open_gateway() as gateway,
        engine(gateway, "Hello", " you"),
    ):
        response = await gateway.client.post("/v1/chat/completions", {**CHAT, "stream": True})
    *chunks, last = response.events()
    assert last == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {"content": " you"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_usage_while_streaming_comes_only_when_asked_for_in_a_chunk_of_its_own(open_gateway):
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with open_gateway() as gateway, engine(gateway, "Hello"):
        response = await gateway.client.post("/v1/chat/completions", body)
    *chunks, counted, last = response.events()
    assert last == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert counted["choices"] == []
    assert counted["usage"]["completion_tokens"] == 1


async def test_n_choices_of_two_prompts_keep_their_indexes(open_gateway):
    body = {**COMPLETION, "prompt": ["a", "b"], "n": 2}
    async with open_gateway() as gateway, engine(gateway, "x", "y"):
        whole = await gateway.client.post("/v1/completions", body)
        stream = await gateway.client.post("/v1/completions", {**body, "stream": True})
    assert [(one["index"], one["text"]) for one in whole.json()["choices"]] == [(at, "xy") for at in range(4)]
    assert {chunk["choices"][0]["index"] for chunk in stream.events()[:-1]} == {0, 1, 2, 3}


async def test_the_callers_request_id_is_echoed_when_it_is_sane(open_gateway):
    async with open_gateway() as gateway, engine(gateway, "x"):
        sane = await gateway.client.post("/v1/completions", COMPLETION, headers={"x-request-id": "abc-1"})
        rude = await gateway.client.post("/v1/completions", COMPLETION, headers={"x-request-id": "a\r\nb: c"})
        same = await gateway.client.post("/v1/completions", COMPLETION, headers={"x-request-id": "abc-1"})
    assert sane.headers["x-request-id"] == same.headers["x-request-id"] == "abc-1"
    assert sane.json()["id"] != same.json()["id"]
    assert "\r" not in rude.headers["x-request-id"]


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        (None, 401, "invalid_api_key"),
        ("", 401, "invalid_api_key"),
        ("mm-unknown", 401, "invalid_api_key"),
        ("mm-expired", 401, "invalid_api_key"),
        ("mm-é", 401, "invalid_api_key"),
        ("x" * 5000, 401, "invalid_api_key"),
        ("mm-manage", 403, "insufficient_scope"),
    ],
)
async def test_a_key_that_is_no_good_is_refused(open_gateway, key, status, code):
    async with open_gateway() as gateway:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        response = await gateway.client.post("/v1/completions", COMPLETION, key=None, headers=headers)
    assert response.status == status
    assert response.json()["error"]["code"] == code
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


async def test_another_scheme_than_bearer_is_refused(open_gateway):
    async with open_gateway() as gateway:
        response = await gateway.client.post(
            "/v1/completions", COMPLETION, key=None, headers={"authorization": "Basic Zm9v"}
        )
    assert response.status == 401


async def test_an_unknown_model_gets_404_with_near_names(open_gateway):
    async with open_gateway() as gateway:
        response = await gateway.client.post("/v1/completions", {**COMPLETION, "model": "acme/eccho"})
    assert response.status == 404
    assert response.json()["error"]["param"] == "model"
    assert "acme/echo" in response.json()["error"]["message"]


async def test_a_model_that_is_not_loaded_says_what_would_load_it(open_gateway):
    async with open_gateway() as gateway:
        response = await gateway.client.post("/v1/completions", {**COMPLETION, "model": "cold"})
    assert response.status == 503
    assert response.json()["error"]["code"] == "model_not_loaded"
    assert "POST /v1/models/cold@1/load" in response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"


async def test_a_request_is_held_while_its_model_is_being_loaded(open_gateway):
    async with open_gateway() as gateway, engine(gateway, "x") as loading:
        loading.state, loading.stage = "loading", "weights"
        loading.pulling.clear()
        asked = asyncio.create_task(gateway.client.post("/v1/completions", COMPLETION))
        await asyncio.sleep(2)
        assert not asked.done()
        loading.state = "ready"
        loading.pulling.set()
        response = await asked
    assert response.status == 200
    assert response.json()["choices"][0]["text"] == "x"


async def test_a_held_stream_tells_its_status_to_who_asked(open_gateway):
    for headers, told in (({"x-mmserve-status": "events"}, True), ({}, False)):
        async with open_gateway() as gateway, engine(gateway, "x") as loading:
            loading.state, loading.stage = "loading", "weights"
            loading.pulling.clear()
            asked = asyncio.create_task(
                gateway.client.post("/v1/completions", {**COMPLETION, "stream": True}, headers=headers)
            )
            await asyncio.sleep(3)
            loading.state = "ready"
            loading.pulling.set()
            response = await asked
        text = response.body.decode()
        assert ("event: status" in text) is told
        if told:
            line = next(line for line in text.splitlines() if line.startswith("data: ") and "stage" in line)
            status = json.loads(line.removeprefix("data: "))
            assert set(status) == {"status", "stage", "waited_s", "eta_s", "done_bytes", "total_bytes"}
            assert (status["status"], status["stage"]) in {
                ("loading", "weights"),
                ("asleep", "waiting for memory or a node"),
            }
        assert text.endswith("data: [DONE]\n\n")


async def test_a_held_request_wakes_the_controller(open_gateway, redis_url):
    async with open_gateway() as gateway:
        listener = Redis.from_url(redis_url)
        pubsub = listener.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe(CONTROLLER_CHANNEL)
        await pubsub.get_message(timeout=1)
        asked = asyncio.create_task(gateway.client.post("/v1/completions", COMPLETION))
        heard = None
        async with asyncio.timeout(5):
            while heard is None:
                heard = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await pubsub.aclose()
        await listener.aclose()


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        ({"load_s": 90.0}, "model_loading", "expected in 90 s: longer than this request may take (30 s)"),
        ({"failure": "given up after 5 tries: out of memory"}, "model_not_loaded", "out of memory"),
    ],
)
async def test_what_would_come_too_late_or_never_is_refused_at_once(open_gateway, entry, code, words):
    async with open_gateway() as gateway:
        echo = dataclasses.replace(gateway.table.deployments["echo"], **entry)
        deployments = {**gateway.table.deployments, "echo": echo}
        gateway.table = dataclasses.replace(gateway.table, revision=2, deployments=deployments)
        gateway.runtime.table.push(2)
        await until(lambda: gateway.runtime.table.revision == 2)
        response = await gateway.client.post("/v1/completions", COMPLETION)
    assert response.status == 503
    assert response.json()["error"]["code"] == code
    assert words in response.json()["error"]["message"]
    if code == "model_loading":
        assert response.headers["retry-after"] == "90"


async def test_a_chat_with_a_model_that_has_no_template_names_the_other_endpoint(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, deployment="base", script=words("x")),
    ):
        response = await gateway.client.post("/v1/chat/completions", {**CHAT, "model": "base"})
    assert response.status == 400
    assert "/v1/completions" in response.json()["error"]["message"]


async def test_tokens_beyond_the_context_are_refused_with_both_numbers(open_gateway):
    async with open_gateway() as gateway, engine(gateway, "x"):
        response = await gateway.client.post("/v1/completions", {**COMPLETION, "prompt": [1] * 2045})
    assert response.status == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "2045" in error["message"]
    assert "2048" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engines_refusal_before_the_first_token_has_its_true_status(open_gateway, stream):
    refusing = failing("context_length_exceeded", "4096 tokens of 2048", "messages")
    async with open_gateway() as gateway, FakeEngine(gateway.redis_url, gateway.layer, script=refusing):
        response = await gateway.client.post("/v1/chat/completions", {**CHAT, "stream": stream})
    assert response.status == 400
    assert response.json()["error"] == {
        "message": "4096 tokens of 2048",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }


async def test_an_error_after_the_headers_comes_as_an_event_before_done(open_gateway):
    async def breaking(engine: FakeEngine, job_id: str, request: GenerateRequest) -> AsyncIterator[list[Any]]:
        yield [DELTA, 0, "half", [1], None, None, None]
        yield [ERROR, {"code": "internal_error", "message": "broke", "param": None}]

    async with open_gateway() as gateway, FakeEngine(gateway.redis_url, gateway.layer, script=breaking):
        response = await gateway.client.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert response.status == 200
    *_, error, last = response.events()
    assert error["error"]["message"] == "broke"
    assert last == "[DONE]"
    assert response.complete


async def test_an_idle_stream_is_kept_alive_with_comments(open_gateway):
    async with open_gateway(keep_alive_s=0.05) as gateway, engine(gateway, "late") as quiet:
        quiet.gate.clear()
        async with gateway.client.begin("/v1/chat/completions", {**CHAT, "stream": True}) as (
            response,
            task,
            _,
        ):
            await response.until(b": keep-alive\n\n")
            quiet.gate.set()
            await task
    assert response.text() == "late"


async def test_a_client_that_leaves_the_queue_takes_its_job_along(open_gateway):
    async with open_gateway() as gateway, engine(gateway, "x") as busy:
        await heard(gateway)
        busy.pulling.clear()
        client = redis.Redis.from_url(gateway.redis_url)
        async with gateway.client.begin("/v1/completions", COMPLETION) as (_, task, left):
            await until(lambda: client.llen("rq:queue:echo.normal") or busy.jobs)
            left.set()
            await task
        assert client.llen("rq:queue:echo.normal") == 0
        if not busy.jobs:  # a blocking pop that had begun before the pause may have taken it
            assert client.keys("rq:job:*") == []
        client.close()


async def test_a_client_that_leaves_while_it_is_answered_stops_the_engine(open_gateway):
    async def forever(engine: FakeEngine, job_id: str, request: GenerateRequest) -> AsyncIterator[list[Any]]:
        yield [DELTA, 0, "one", [1], None, None, None]
        await asyncio.Event().wait()

    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=forever) as busy,
    ):
        async with gateway.client.begin("/v1/chat/completions", {**CHAT, "stream": True}) as (
            response,
            task,
            left,
        ):
            await response.until(b"one")
            left.set()
            await task
        await busy.until(lambda: bool(busy.cancelled))
        assert len(gateway.runtime.hub) == 0


async def test_explain_says_who_would_answer_and_runs_nothing(open_gateway):
    async with open_gateway() as gateway, engine(gateway, "x") as idle:
        await heard(gateway)
        found = await gateway.client.post("/v1/routing/explain", CHAT)
        cold = await gateway.client.post("/v1/routing/explain", {**CHAT, "model": "cold"})
        assert idle.jobs == {}
    assert found.json()["chosen"] == "echo"
    assert found.json()["chain"] == ["echo"]
    assert found.json()["revision"] == 1
    assert cold.json()["chosen"] is None
    assert cold.json()["candidates"][0]["reasons"] == ["no replica is ready"]


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/v1/models/a/b/predict", "/healthz"]
)
async def test_another_method_gets_405_with_the_envelope(open_gateway, path):
    async with open_gateway() as gateway:
        response = await gateway.client.post(path, b"", method="DELETE")
    assert response.status == 405
    assert response.headers["allow"]
    assert response.json()["error"]["code"] == "method_not_allowed"


async def test_healthz_and_readyz_say_how_it_is(open_gateway):
    async with open_gateway() as gateway:
        assert (await gateway.client.get("/healthz")).status == 200
        ready = await gateway.client.get("/readyz")
        assert ready.status == 200
        assert ready.json()["checks"] == {"database": "ok", "redis": "ok", "routing_table": "ok"}


async def test_a_body_beyond_the_bound_gets_413(open_gateway):
    async with open_gateway(max_body_bytes=100) as gateway:
        response = await gateway.client.post("/v1/completions", {**COMPLETION, "prompt": "x" * 200})
    assert response.status == 413


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_another_content_type_than_json_is_refused(open_gateway, kind):
    async with open_gateway() as gateway:
        response = await gateway.client.post("/v1/completions", COMPLETION, headers={"content-type": kind})
    assert response.status == 400
    assert "application/json" in response.json()["error"]["message"]


async def test_a_new_revision_brings_a_new_table_and_fresh_keys(open_gateway):
    async with open_gateway() as gateway:
        gateway.table = gateway.table_with(revision=5)
        await gateway.layer.group_send(GATEWAYS, {"type": "config.revision", "revision": 5})
        await until(lambda: gateway.runtime.table.revision == 5 and gateway.keys.refreshed[-1:] == [5])


async def test_while_the_database_is_away_the_last_table_serves(open_gateway):
    async with open_gateway() as gateway, engine(gateway, "still"):
        gateway.database_away = True
        await gateway.runtime.table.look()
        response = await gateway.client.post("/v1/completions", COMPLETION)
    assert response.status == 200
