"""When a deployment is to be kept hot: windows of days and local times. Pure: the clock is an argument.

A window that ends at or before its start ends on the next day. Where clocks are put forward, a time that does not
exist is the one an hour later; where they are put back, a window begins with the first of two and ends with the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAILY = "daily"


def parse_days(text: str) -> frozenset[int]:
    """``mon-fri,sun`` as numbers, Monday is 0; ``sat-mon`` goes over the week's end. ValueError says what is wrong."""
    if text.strip().lower() == DAILY:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = (name.strip() for name in part.partition("-"))
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{part.strip()[:20]!r} is no day; write {DAILY}, or days like mon-fri,sun")
        begin = DAYS.index(first)
        length = (DAYS.index(last) - begin) % 7 if dash else 0
        found |= {(begin + number) % 7 for number in range(length + 1)}
    return frozenset(found)


def zone_of(name: str) -> tzinfo:
    """LookupError, ValueError or OSError for what is none. UTC is known without a database of zones, too."""
    return UTC if name == "UTC" else ZoneInfo(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Hot on these days from ``start`` to ``end``, by the clocks of ``zone``; the same time twice is a whole day."""

    days: frozenset[int]
    start: time
    end: time
    zone: str = "UTC"

    def around(self, now: datetime) -> list[tuple[datetime, datetime]]:
        """Its intervals (UTC) that could hold ``now`` or begin within a day."""
        zone = zone_of(self.zone)
        today = now.astimezone(zone).date()
        found = []
        for shift in (-1, 0, 1):
            day = today + timedelta(days=shift)
            if day.weekday() in self.days:
                until = day if self.end > self.start else day + timedelta(days=1)
                begin = datetime.combine(day, self.start, zone)
                end = datetime.combine(until, self.end, zone).replace(fold=1)
                found.append((begin.astimezone(UTC), end.astimezone(UTC)))
        return found


def hot_until(windows: Iterable[Window], now: datetime, lead_s: float = 0.0) -> datetime | None:
    """The end of the last window that is open, or opens within ``lead_s`` (what a load takes); None: it is not hot."""
    lead = timedelta(seconds=lead_s)
    ends = [end for window in windows for begin, end in window.around(now) if begin - lead <= now < end]
    return max(ends, default=None)
