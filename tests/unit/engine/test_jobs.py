"""What an RQ job's data may be."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.engine.jobs import MAX_JOB_BYTES, MalformedJob, UnknownFunction, decode, reply_channel
from inference.protocol import JOB_GENERATE
from mmserve.errors import MmserveError

SAMPLING = {"max_tokens": 3}
REQUEST = {"request_id": "r", "reply_to": "ch", "deadline": 1.0, "sampling": SAMPLING, "prompts": ["hi"]}


def data(name: str = JOB_GENERATE, args: Any = (), request: Any = REQUEST) -> bytes:
    return zlib.compress(json.dumps([name, None, list(args), {"request": request}]).encode())


def test_a_generate_job_is_read() -> None:
    request = decode(data())
    assert request.prompts == ["hi"]
    assert request.sampling.max_tokens == 3


def test_a_function_outside_the_table_is_refused_by_name() -> None:
    with pytest.raises(UnknownFunction, match=r"os\.system"):
        decode(data("os.system"))


def test_an_unknown_field_is_refused_and_the_reply_channel_still_found() -> None:
    broken = data(request={**REQUEST, "surprise": 1})
    with pytest.raises(MalformedJob, match="surprise"):
        decode(broken)
    assert reply_channel(broken) == "ch"


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(MalformedJob, match="positional"):
        decode(data(args=[1]))


def test_a_decompression_bomb_is_refused() -> None:
    with pytest.raises(MalformedJob, match="larger"):
        decode(zlib.compress(b"0" * (MAX_JOB_BYTES + 1)))


def test_deep_nesting_is_refused() -> None:
    nested = '{"role": "user", "content": ' + "[" * 100_000 + "]" * 100_000 + "}"
    text = json.dumps([JOB_GENERATE, None, [], {"request": {**REQUEST, "messages": ["@"]}}]).replace(
        '"@"', nested
    )
    with pytest.raises(MalformedJob):
        decode(zlib.compress(text.encode()))
    assert reply_channel(zlib.compress(text.encode())) is None


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_an_error_for_the_client(garbage: bytes) -> None:
    with pytest.raises(MmserveError):
        decode(garbage)
    assert reply_channel(garbage) is None
