"""500 clients at once on the platform of `make run`: each gets its own answer, whole and once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.e2e.platform import Platform

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CLIENTS = 500
TOKENS = 4


async def stream(client: httpx.AsyncClient, number: int) -> list[Any]:
    """The events of one streamed completion; the prompt says whose it is."""
    body = {
        "model": "smollm2-135m-instruct",
        "prompt": f"Client number {number} says",
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "logprobs": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    found = []
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, (await answer.aread()).decode()
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                found.append(line.removeprefix("data: "))
    return [one if one == "[DONE]" else json.loads(one) for one in found]


def test_500_clients_stream_at_once_and_nothing_is_lost(platform: Platform) -> None:
    async def all_of_them() -> list[list[Any]]:
        limits = httpx.Limits(max_connections=CLIENTS)
        headers = {"Authorization": f"Bearer {platform.key}"}
        async with httpx.AsyncClient(
            base_url=platform.url, headers=headers, timeout=300, limits=limits
        ) as client:
            return list(await asyncio.gather(*(stream(client, number) for number in range(CLIENTS))))

    answers = asyncio.run(all_of_them())

    ids = set()
    for *chunks, counted, last in answers:
        assert last == "[DONE]"
        assert counted["usage"]["completion_tokens"] == TOKENS
        (answer_id,) = {chunk["id"] for chunk in chunks}
        ids.add(answer_id)
        logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        tokens = [token for one in logprobs if one for token in one["tokens"]]
        assert len(tokens) == TOKENS, "each token once"
        offsets = [offset for one in logprobs if one for offset in one["text_offset"]]
        assert offsets == sorted(offsets), "in their order"
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
    assert len(ids) == CLIENTS
