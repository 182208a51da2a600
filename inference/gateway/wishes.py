"""What a client asks of the choice: an ``mmserve`` object in the body, or headers; both together tighten."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mmserve.errors import InvalidRequest
from routing.core.route import NO_WISHES, Wishes

MAX_WORDS = 20
PREFIX = b"x-mmserve-"
# Request headers of this prefix with another meaning.
OTHERS = (b"x-mmserve-status", b"x-mmserve-session")

Word = Annotated[str, Meta(min_length=1, max_length=301)]
Words = Annotated[list[Word], Meta(max_length=MAX_WORDS)]
Dollars = Annotated[float, Meta(ge=0.0, le=1e6)]
Milliseconds = Annotated[float, Meta(gt=0.0, le=1e9)]


class RoutingWishes(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The ``mmserve`` object: what the version that serves must keep, should have, or may cost."""

    max_cost_usd: Annotated[
        Dollars | None, Meta(description="The most that the request may cost, as estimated from its prices.")
    ] = None
    max_ttft_ms: Annotated[
        Milliseconds | None, Meta(description="The highest predicted time to the first token.")
    ] = None
    require: Annotated[
        Words | None,
        Meta(
            description="Capabilities (chat, json) and tags (region=eu, language=de) that must all be there."
        ),
    ] = None
    prefer: Annotated[
        Words | None,
        Meta(description="Capabilities, tags, models or versions: who has more of them comes first."),
    ] = None
    no_fallback: Annotated[
        bool | None, Meta(description="The first choice or nobody: no other one is tried when it fails.")
    ] = None


def wishes_of_body(given: RoutingWishes | None) -> Wishes:
    """As the core has them."""
    if given is None:
        return NO_WISHES
    return Wishes(
        require=tuple(given.require or ()),
        prefer=tuple(given.prefer or ()),
        max_cost_usd=given.max_cost_usd,
        max_ttft_s=None if given.max_ttft_ms is None else given.max_ttft_ms / 1000,
        no_fallback=bool(given.no_fallback),
    )


def wishes_of_headers(headers: Iterable[tuple[bytes, bytes]]) -> Wishes:
    """From ``x-mmserve-max-cost-usd`` and its like; a header of ours that means nothing is refused."""
    found: dict[str, Any] = {}
    for name, value in headers:
        if not name.startswith(PREFIX) or name in OTHERS:
            continue
        read = _READERS.get(name)
        if read is None:
            raise InvalidRequest(
                f"Unrecognized request header: {name.decode('latin-1')[:100]}; "
                f"known are {', '.join(sorted(known.decode() for known in (*_READERS, *OTHERS)))}.",
                param=name.decode("latin-1")[:100],
                code="unknown_parameter",
            )
        field, parse = read
        try:
            found[field] = parse(value.decode("latin-1").strip())
        except ValueError as error:
            raise InvalidRequest(f"{name.decode()}: {error}.", param=name.decode()) from None
    return wishes_of_body(RoutingWishes(**found)) if found else NO_WISHES


def tightened(one: Wishes, other: Wishes) -> Wishes:
    """Both together: the lower ceilings, all the words."""
    if one is NO_WISHES or other is NO_WISHES:
        return other if one is NO_WISHES else one
    return Wishes(
        require=tuple(dict.fromkeys((*one.require, *other.require))),
        prefer=tuple(dict.fromkeys((*one.prefer, *other.prefer))),
        max_cost_usd=_lower(one.max_cost_usd, other.max_cost_usd),
        max_ttft_s=_lower(one.max_ttft_s, other.max_ttft_s),
        no_fallback=one.no_fallback or other.no_fallback,
    )


def _lower(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            # Python alone reads 1_0 as ten.
            value = math.nan if "_" in text else float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise ValueError(f"not a number from {least:g} to {most:g}")
        return value

    return parse


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if len(words) > MAX_WORDS or any(len(word) > 301 for word in words):
        raise ValueError(f"at most {MAX_WORDS} words of 301 characters, with commas between them")
    return words


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


_READERS: dict[bytes, tuple[str, Callable[[str], Any]]] = {
    b"x-mmserve-max-cost-usd": ("max_cost_usd", _number(0.0, 1e6)),
    b"x-mmserve-max-ttft-ms": ("max_ttft_ms", _number(1e-3, 1e9)),
    b"x-mmserve-require": ("require", _words),
    b"x-mmserve-prefer": ("prefer", _words),
    b"x-mmserve-no-fallback": ("no_fallback", _flag),
}


def headers_in_schema() -> dict[str, dict[str, Any]]:
    """Each header's name to its OpenAPI schema and description: those of the field that it stands for."""
    _, components = msgspec.json.schema_components([RoutingWishes])
    fields = components[RoutingWishes.__name__]["properties"]
    found = {}
    for name, (field, parse) in _READERS.items():
        [kind] = [one for one in fields[field]["anyOf"] if one["type"] != "null"]
        words = fields[field]["description"]
        if parse is _words:
            kind, words = {"type": "string"}, f"{words} At most {MAX_WORDS}, with commas between them."
        found[name.decode()] = {"description": words, "schema": kind}
    return found
