"""JSON bodies into typed structs, with errors that name the parameter."""

from __future__ import annotations

import json
import math
import re
from typing import Any, TypeVar

import msgspec

from mmserve.errors import InvalidRequest

T = TypeVar("T")

MAX_DEPTH = 64
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*?)`(?: - at `\$(.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(.*?)`(?: - at `\$(.*)`)?$", re.DOTALL)
_ELSEWHERE = re.compile(r"^(.*) - at `(?:key in )?\$(.*)`$", re.DOTALL)


class _DuplicateKey(ValueError):
    """A JSON object has the same key twice; the message is the key."""


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The struct in ``body``; every way to be wrong becomes an InvalidRequest."""
    if not body.strip():
        raise InvalidRequest("The body is empty; send a JSON object.")
    try:
        found = decoder.decode(body)
        refuse_duplicate_keys(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not valid UTF-8: {error.reason}.", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    except _DuplicateKey as error:
        key = str(error)[:100]
        raise InvalidRequest(
            f"The field {key!r} is given twice.", param=key, code="duplicate_field"
        ) from None
    except ValueError as error:  # msgspec.DecodeError and json's own are ValueErrors
        raise _blamed(body) or InvalidRequest(
            f"The body is not valid JSON: {error}", code="invalid_json"
        ) from None
    return found


def refuse_duplicate_keys(body: bytes) -> None:
    """msgspec keeps the last of two equal keys; two parsers that disagree on that are a way round checks."""
    json.loads(body, object_pairs_hook=_pairs)


def _pairs(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1:
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(key)
            seen.add(key)


def refuse_deep(value: Any, param: str, limit: int = MAX_DEPTH) -> None:
    """Free-form values (a JSON schema) travel on to code that recurses: bound their depth here."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
        if not level:
            return
    raise InvalidRequest(f"{param} is nested deeper than {limit} levels.", param=param)


def _blamed(body: bytes) -> InvalidRequest | None:
    """Python's parser takes NaN and lone surrogates: where it does, the parameter that has one is named."""
    try:
        level = [("", json.loads(body))]
    except (ValueError, RecursionError):
        return None
    while level:
        path, value = level.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return InvalidRequest(
                f"{path}: {value} is not a number in JSON.", param=path, code="invalid_json"
            )
        if isinstance(value, str) and not _is_text(value):
            why = "half of a UTF-16 surrogate pair is not text"
            return InvalidRequest(f"{path}: {why}.", param=path, code="invalid_json")
        if isinstance(value, dict):
            level += [(_join(path, key) if _is_text(key) else path, item) for key, item in value.items()]
        elif isinstance(value, list):
            level += [(f"{path}[{at}]", item) for at, item in enumerate(value)]
    return None


def _is_text(value: str) -> bool:
    return value.isascii() or value.encode(errors="replace").decode() == value


def _refusal(message: str) -> InvalidRequest:
    if match := _UNKNOWN.match(message):
        param = _join(match[2], match[1])
        return InvalidRequest(
            f"Unrecognized request argument: {param}", param=param, code="unknown_parameter"
        )
    if match := _MISSING.match(message):
        param = _join(match[2], match[1])
        return InvalidRequest(f"Missing required parameter: {param}", param=param, code="missing_parameter")
    if match := _ELSEWHERE.match(message):
        param = match[2].lstrip(".")
        return InvalidRequest(f"{param}: {match[1].lower()}.", param=param or None)
    return InvalidRequest(f"The body is wrong: {message.lower()}.")


def _join(path: str | None, field: str) -> str:
    return ".".join(part for part in ((path or "").lstrip("."), field[:100]) if part)
