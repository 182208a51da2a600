"""Records in the stream of a real Redis."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis

from routing.connection import connection
from routing.core.records import USAGE_STREAM, UsageRecord


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    connection.cache_clear()
    yield connection()
    connection().close()
    connection.cache_clear()


def record(**given: Any) -> UsageRecord:
    """One answer of a version by a key, two seconds long."""
    usual: dict[str, Any] = {
        "request_id": "r", "key": "k1", "team": "search", "route": "smart", "model": "smart",
        "served_id": "acme/echo@1", "deployment": "echo", "endpoint": "completions", "outcome": "completed",
        "status": 200, "stream": False, "at": time.time(), "prompt_tokens": 10, "completion_tokens": 5,
        "ttft_s": 0.5, "tpot_s": 0.01, "e2e_s": 2.0, "cost_nano": 1000,
    }  # fmt: skip
    return UsageRecord(**{**usual, **given})


@pytest.fixture
def put(client: redis.Redis) -> Callable[..., None]:
    """``put(record, record, …)`` into the stream."""
    numbers = itertools.count()

    def write(*records: UsageRecord) -> None:
        pipe = client.pipeline(transaction=False)
        for one in records:
            numbered = msgspec.structs.replace(one, request_id=f"r{next(numbers)}")
            pipe.xadd(USAGE_STREAM, {"record": msgspec.json.encode(numbered)})
        pipe.execute()

    return write
