"""What a request costs, and which budgets pay for it. Whole nano-dollars everywhere: a ledger holds no fraction.

A version is priced by tokens or, where no token has a price, by device-hour: then a request pays for its share of
the engine's measured time. While an engine has work, each second of it is shared evenly by the sequences that it
runs, so that the shares of all requests add up to the time that the engine worked (generalized processor sharing,
Parekh and Gallager 1993).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import msgspec

NANO = 10**9
_PICO_A_NANO = 1000
_HOUR_S = 3600
# Redis hash of the ledgers by place, and zset of what is held for requests in flight (see admit.lua).
LEDGERS_KEY, HELD_KEY = b"mmserve:ledgers", b"mmserve:ledgers:held"
# Redis' Lua counts in doubles: whole up to 2**53.
MOST_NANO = 9_000_000 * NANO


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """One version's prices: pico-dollars a token (a millionth of the price per million), nano-dollars an hour."""

    input_pico: int | None = None
    cached_input_pico: int | None = None  # None: as input
    output_pico: int | None = None
    device_hour_nano: int | None = None
    # Whether any token has a price: the device-hour counts for nothing then.
    by_tokens: bool = field(init=False, repr=False, compare=False)
    # Whether there is a price at all.
    priced: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_tokens = (self.input_pico, self.cached_input_pico, self.output_pico) != (None, None, None)
        object.__setattr__(self, "by_tokens", by_tokens)
        object.__setattr__(self, "priced", by_tokens or self.device_hour_nano is not None)

    @classmethod
    def of(
        cls,
        *,
        per_million_input: Decimal | None = None,
        per_million_cached_input: Decimal | None = None,
        per_million_output: Decimal | None = None,
        per_device_hour: Decimal | None = None,
    ) -> Prices:
        """From dollars, with at most six decimals."""
        return cls(
            input_pico=_whole(per_million_input, 10**6),
            cached_input_pico=_whole(per_million_cached_input, 10**6),
            output_pico=_whole(per_million_output, 10**6),
            device_hour_nano=_whole(per_device_hour, NANO),
        )

    def cost_nano(
        self,
        *,
        prompt_tokens: int = 0,
        cached_tokens: int = 0,
        completion_tokens: int = 0,
        engine_s: float = 0.0,
        devices: int = 1,
    ) -> int:
        """Nano-dollars of what was used, rounded up; ``engine_s`` is the share of engine time."""
        if self.by_tokens:
            cached = self.input_pico if self.cached_input_pico is None else self.cached_input_pico
            pico = (
                (prompt_tokens - cached_tokens) * (self.input_pico or 0)
                + cached_tokens * (cached or 0)
                + completion_tokens * (self.output_pico or 0)
            )
            return -(-pico // _PICO_A_NANO)
        if self.device_hour_nano is not None:
            # Times are measured, so not exact: microseconds are fine enough.
            used_us = math.ceil(engine_s * 1e6) * devices
            return -(-used_us * self.device_hour_nano // (_HOUR_S * 10**6))
        return 0


NO_PRICE = Prices()


class Scope(StrEnum):
    """Whose spending a budget limits."""

    KEY = "key"
    TEAM = "team"
    ROUTE = "route"


class Period(StrEnum):
    """When a budget begins anew, in UTC."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"  # never


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetEntry:
    """One budget: ``subject`` is the key's id, or the team's or route's name."""

    id: str
    name: str
    scope: Scope
    subject: str
    period: Period
    limit_nano: int
    # Its ledger's field in the hash of all. Another period is another ledger.
    place: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", f"{self.id}:{self.period.value}")


class Payers(tuple[BudgetEntry, ...]):
    """The budgets that pay for a request, and what the gateway's scripts are told of them."""

    def __init__(self, budgets: Iterable[BudgetEntry] = ()) -> None:
        self.places = [one.place for one in self]
        self.joined = ",".join(self.places)
        self._told = (-1, b"")

    def told(self, now: float) -> bytes:
        """MessagePack of [place, period, limit, place, …], made once a minute; ``now`` is unix time."""
        minute = int(now // 60)
        if self._told[0] != minute:
            terms = ((one.place, period_label(one.period, now), one.limit_nano) for one in self)
            self._told = (minute, msgspec.msgpack.encode([*chain.from_iterable(terms)]))
        return self._told[1]


NOBODY_PAYS = Payers()


class Ledger(NamedTuple):
    """How one budget stands in Redis: ``period`` is a label, the others are nano-dollars."""

    period: str
    spent_nano: int
    held_nano: int

    @classmethod
    def read(cls, stored: bytes) -> Ledger:
        """As the gateway's scripts write it: Lua's ``struct.pack('>dds', spent, held, period)``."""
        spent, held = _AMOUNTS.unpack_from(stored)
        return cls(stored[_AMOUNTS.size : -1].decode(), int(spent), int(held))

    def written(self) -> bytes:
        """The same, as they read it."""
        return _AMOUNTS.pack(self.spent_nano, self.held_nano) + self.period.encode() + b"\0"


_AMOUNTS = struct.Struct(">dd")


def period_label(period: Period, now: float) -> str:
    """Which day or month it is: labels of one kind sort by time."""
    return _label(period, int(now // 60))


@lru_cache(maxsize=16)
def _label(period: Period, minute: int) -> str:
    at = datetime.fromtimestamp(minute * 60, UTC)
    if period is Period.DAY:
        return at.strftime("%Y-%m-%d")
    return at.strftime("%Y-%m") if period is Period.MONTH else "total"


def period_start(period: Period, now: float) -> datetime | None:
    """When the present period began; None for one that has no beginning."""
    at = datetime.fromtimestamp(now, UTC)
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.DAY:
        return midnight
    return midnight.replace(day=1) if period is Period.MONTH else None


@lru_cache(maxsize=4096)
def in_usd(nano: int) -> str:
    """Dollars in plain digits: 1200 is ``0.0000012``."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, rest = divmod(nano, NANO)
    decimals = f"{rest:09d}".rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def to_nano(usd: Decimal) -> int:
    """Whole nano-dollars of an amount with at most nine decimals."""
    found = _whole(usd, NANO)
    assert found is not None
    return found


def _whole(amount: Decimal | None, times: int) -> int | None:
    return None if amount is None else int((amount * times).to_integral_value())
