"""The HTTP endpoints, whole and streamed, against a scripted engine."""

from __future__ import annotations

import pytest

from tests.integration.gateway.fake_engine import FakeEngine, words

pytestmark = pytest.mark.asyncio

COMPLETION = {"model": "acme/echo", "prompt": "say", "max_tokens": 8}
CHAT = {"model": "acme/echo", "messages": [{"role": "user", "content": "say"}]}


async def test_a_completion_is_answered_in_one_body(open_gateway):
    async with (
        open_gateway() as gateway,
        FakeEngine(gateway.redis_url, gateway.layer, script=words("Hello", " you")),
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
        FakeEngine(gateway.redis_url, gateway.layer, script=words("Hello", " you")),
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
