"""The fixed table of functions that a job may name. Redis is no code channel: nothing else is ever run."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from inference.protocol import JOB_GENERATE, GenerateRequest
from mmserve.errors import InvalidRequest


class UnknownFunction(InvalidRequest):
    """The job names a function that is not in the table."""

    code = "unknown_function"


class MalformedJob(InvalidRequest):
    """The job's data is not what its function takes."""

    code = "malformed_job"


class _GenerateArguments(msgspec.Struct, forbid_unknown_fields=True):
    request: GenerateRequest


_call_decoder = msgspec.json.Decoder(tuple[str, None, list[Any], msgspec.Raw])
_generate_decoder = msgspec.json.Decoder(_GenerateArguments)
_reply_decoder = msgspec.json.Decoder(dict[str, Any])
MAX_JOB_BYTES = 64 * 2**20
# Very deep nesting ends in a RecursionError.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def generate(arguments: bytes) -> GenerateRequest:
    """The keyword arguments of a generate job, typed."""
    return _generate_decoder.decode(arguments).request


TABLE: dict[str, Callable[[bytes], GenerateRequest]] = {JOB_GENERATE: generate}


def inflate(data: bytes) -> bytes:
    """RQ's job data, which RQ compresses; bounded, because a small bomb may unpack to gigabytes."""
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(data, MAX_JOB_BYTES)
    except zlib.error:
        return data
    if unpacker.unconsumed_tail:
        raise MalformedJob(f"the job's data is larger than {MAX_JOB_BYTES} bytes")
    return found


def decode(data: bytes) -> GenerateRequest:
    """The request in an RQ job's data; raises UnknownFunction or MalformedJob."""
    try:
        name, _, args, kwargs = _call_decoder.decode(inflate(data))
    except UNREADABLE as error:
        raise MalformedJob(f"not a JSON job: {error}") from None
    function = TABLE.get(name)
    if function is None:
        raise UnknownFunction(f"{name[:100]!r} is not in the table of job functions")
    if args:
        raise MalformedJob(f"{name} takes no positional arguments")
    try:
        return function(kwargs)
    except UNREADABLE as error:
        raise MalformedJob(str(error)) from None


def reply_channel(data: bytes) -> str | None:
    """Where a malformed job wants its answer, if so much can be read of it."""
    try:
        _, _, _, kwargs = _call_decoder.decode(inflate(data))
        request = _reply_decoder.decode(kwargs).get("request")
    except (*UNREADABLE, MalformedJob):
        return None
    channel = request.get("reply_to") if isinstance(request, dict) else None
    return channel if isinstance(channel, str) and channel else None
