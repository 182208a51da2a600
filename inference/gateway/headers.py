"""The headers that every answer carries."""

from __future__ import annotations

import re
from collections.abc import Iterable

from inference.gateway.admission import Rates
from inference.gateway.generation import Generation
from inference.gateway.plan import Plan
from mmserve.errors import AuthenticationFailed, MmserveError
from routing.core.cost import in_usd

Header = tuple[bytes, bytes]
Headers = list[Header]

SESSION_HEADER = b"x-mmserve-session"
MAX_SESSION_CHARS = 200
SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


def header(headers: Iterable[Header], name: bytes) -> bytes | None:
    """The first header of this (lower-case) name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def request_id_of(headers: Iterable[Header]) -> bytes | None:
    """The caller's ``x-request-id``, when it is sane."""
    given = header(headers, b"x-request-id")
    return given if given is not None and SANE_ID.fullmatch(given) else None


def note_caller(plan: Plan, headers: Iterable[Header]) -> None:
    """The session (``x-mmserve-session``) and the language of the request, as its headers name them."""
    for name, value in headers:
        if name == SESSION_HEADER:
            plan.session = value[:MAX_SESSION_CHARS].decode("latin-1").strip()
        elif name == b"content-language":
            plan.language = (
                value[:MAX_SESSION_CHARS].decode("latin-1").split("-")[0].split(",")[0].strip().lower()
            )


def rate_headers(rates: Rates | None) -> Headers:
    """``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` for the limits that the key has."""
    found: Headers = []
    if rates is None:
        return found
    if rates.requests_limit is not None:
        found += [
            (b"x-ratelimit-limit-requests", b"%d" % rates.requests_limit),
            (b"x-ratelimit-remaining-requests", b"%d" % rates.requests_left),
            (b"x-ratelimit-reset-requests", b"%.3fs" % (rates.requests_reset_ms / 1000)),
        ]
    if rates.tokens_limit is not None:
        found += [
            (b"x-ratelimit-limit-tokens", b"%d" % rates.tokens_limit),
            (b"x-ratelimit-remaining-tokens", b"%d" % rates.tokens_left),
            (b"x-ratelimit-reset-tokens", b"%.3fs" % (rates.tokens_reset_ms / 1000)),
        ]
    return found


def cost_header(generation: Generation, *, final: bool) -> Headers:
    """``x-mmserve-cost-usd``; before the end of a stream, the most that it can be, under a name that says so."""
    if not generation.prices.priced:
        return []
    if final:
        return [(b"x-mmserve-cost-usd", in_usd(generation.cost_nano).encode())]
    return [(b"x-mmserve-cost-estimate-usd", in_usd(generation.most_cost_nano).encode())]


def error_headers(error: MmserveError) -> Headers:
    """``retry-after``, ``x-should-retry``, the decision's id and, for a 401, the challenge."""
    found = [(name.encode(), value.encode()) for name, value in error.headers()]
    if error.decision_id is not None:
        found.append((b"x-mmserve-decision", error.decision_id.encode()))
    if isinstance(error, AuthenticationFailed):
        found.append((b"www-authenticate", b"Bearer"))
    return found
