"""Usage records become rows, each exactly once: the rows and how far the stream was read are one transaction.

Whoever dies in between has changed nothing; two that run at once wait for each other at the cursor's row. Only what
is in the rows, and some seconds old, is cut off the stream: a ledger that is being opened may still want to read it.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import redis
from django.db import DatabaseError, transaction
from django.utils import timezone

from routing.core import histogram
from routing.core.records import USAGE_LOST_KEY, USAGE_STREAM, UsageRecord
from routing.experiments.settle import settle as settle_experiments
from routing.models import StatsMinute, UsageCursor, UsageHour
from routing.models.usage import COUNTS
from routing.spending import CURSOR, rolled_up_to

log = logging.getLogger(__name__)

BATCH = 2000
# Longer than a gateway takes from reading the rows to opening a ledger from them.
KEPT_AFTER_S = 30
MINUTES_KEPT = datetime.timedelta(hours=48)
# The stream is this full: records will be turned away if nobody rolls it up.
ALARM_AT = 0.5
FIRST = "0-0"

HourKey = tuple[datetime.datetime, str, str, str, str, str, str]
MinuteKey = tuple[datetime.datetime, str, str, str, str]
HOUR_KEYS = ("hour", "key", "team", "route", "model", "version", "arm")
MINUTE_KEYS = ("minute", "route", "model", "version", "arm")
MINUTE_SUMS = (
    "requests", "cancelled", "fallbacks", "cache_hits", "prompt_tokens", "cached_tokens", "completion_tokens",
    "cost_nano",
)  # fmt: skip
MINUTE_MAPS = ("errors", "ttft", "tpot", "e2e")

_decode = msgspec.json.Decoder(UsageRecord).decode


class Rolled(NamedTuple):
    """What one call did."""

    records: int
    unreadable: int
    last_id: str


class Group:
    """Sums of one minute's records that name the same things."""

    __slots__ = ("buckets", "causes", "counts", "fallbacks", "hits")

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.fallbacks = self.hits = 0
        self.causes: dict[str, int] = {}
        self.buckets: tuple[histogram.Buckets, ...] = ({}, {}, {})

    def add(self, record: UsageRecord) -> None:
        """One record."""
        counts, (ttft, tpot, e2e) = self.counts, self.buckets
        counts["requests"] += record.count
        if record.outcome == "completed":
            histogram.count(e2e, record.e2e_s)
        elif record.outcome == "cancelled":
            counts["cancelled"] += record.count
        else:
            counts["errors"] += record.count
            self.causes[record.outcome] = self.causes.get(record.outcome, 0) + record.count
        counts["prompt_tokens"] += record.prompt_tokens
        counts["cached_tokens"] += record.cached_tokens
        counts["completion_tokens"] += record.completion_tokens
        counts["cost_nano"] += record.cost_nano
        counts["other_cost_nano"] += record.other_cost_nano
        counts["engine_us"] += round(record.engine_s * 1e6)
        self.fallbacks += record.fallbacks
        self.hits += record.cached_tokens > 0
        if record.ttft_s > 0:
            histogram.count(ttft, record.ttft_s)
        if record.tpot_s > 0:
            histogram.count(tpot, record.tpot_s)


@dataclass(slots=True)
class Batch:
    """Records summed up in memory, before any row is touched: by minute, key, team, route, version and arm."""

    groups: dict[tuple[int, str, str, str, str, str], Group] = field(default_factory=dict)

    def add(self, record: UsageRecord) -> None:
        """One record."""
        arm = arm_of(record) if record.assignments else ""
        minute = int(record.at // 60)
        place = (minute, record.key, record.team, record.route, record.served_id, arm)
        group = self.groups.get(place)
        if group is None:
            group = self.groups[place] = Group()
        group.add(record)

    def hours(self) -> dict[HourKey, dict[str, int]]:
        """What UsageHour sums."""
        found: dict[HourKey, dict[str, int]] = {}
        for (minute, key, team, *names), group in self.groups.items():
            place = (_moment(minute // 60 * 60), key[:36], team[:100], *_names(*names))
            sums = found.setdefault(place, dict.fromkeys(COUNTS, 0))
            for name, amount in group.counts.items():
                sums[name] += amount
        return found

    def minutes(self) -> dict[MinuteKey, dict[str, Any]]:
        """What StatsMinute sums."""
        found: dict[MinuteKey, dict[str, Any]] = {}
        for (minute, _, _, *names), group in self.groups.items():
            place = (_moment(minute), *_names(*names))
            sums = found.get(place)
            if sums is None:
                sums = found[place] = {**dict.fromkeys(MINUTE_SUMS, 0), **{name: {} for name in MINUTE_MAPS}}
            for name in MINUTE_SUMS:
                sums[name] += group.counts.get(name, 0)
            sums["fallbacks"] += group.fallbacks
            sums["cache_hits"] += group.hits
            for name, counted in zip(MINUTE_MAPS, (group.causes, *group.buckets), strict=True):
                histogram.merge(sums[name], counted)
        return found


def _moment(minute: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(minute * 60, datetime.UTC)


def _names(route: str, served_id: str, arm: str) -> tuple[str, str, str, str]:
    """Route, model, version and arm, as long as the rows have room for."""
    return route[:200], served_id.rpartition("@")[0][:200], served_id[:310], arm


def arm_of(record: UsageRecord) -> str:
    """``experiment/arm``, several with commas; "" outside of experiments."""
    return ",".join(f"{name}/{arm}" for name, arm in sorted(record.assignments.items()))[:500]


def roll_up(client: redis.Redis) -> Rolled:
    """One batch of the stream into the rows; ``records`` is below BATCH once there is no more."""
    last_id = rolled_up_to()
    if not _read(client, last_id, 1):  # no transaction for nothing
        return Rolled(0, 0, last_id)
    with transaction.atomic():
        UsageCursor.objects.get_or_create(pk=CURSOR)
        cursor = UsageCursor.objects.select_for_update().get(pk=CURSOR)
        entries = _read(client, cursor.last_id)
        if not entries:
            return Rolled(0, 0, cursor.last_id)
        records, unreadable = _decoded(entries)
        batch = Batch()
        for record in records:
            batch.add(record)
        _write_hours(batch.hours())
        _write_minutes(batch.minutes())
        _tell_experiments(records)
        cursor.last_id = entries[-1][0].decode()
        cursor.records += len(entries)
        cursor.unreadable += unreadable
        cursor.at = timezone.now()
        cursor.save()
    return Rolled(len(entries), unreadable, cursor.last_id)


def roll_up_all(client: redis.Redis) -> int:
    """Until the stream is in the rows; cuts off what is not wanted any more. Returns how many records."""
    total = 0
    while True:
        done = roll_up(client)
        total += done.records
        if done.records < BATCH:
            break
    trim(client, done.last_id)
    return total


def trim(client: redis.Redis, last_id: str) -> None:
    """Cut off the stream what is in the rows, some seconds after it came."""
    newest_ms = int(last_id.partition("-")[0])
    oldest_kept = min(newest_ms, int((time.time() - KEPT_AFTER_S) * 1000))
    if oldest_kept > 0:
        client.xtrim(USAGE_STREAM, minid=str(oldest_kept), approximate=True)


def forget_old_minutes() -> None:
    """Minutes that no window asks for any more."""
    StatsMinute.objects.filter(minute__lt=timezone.now() - MINUTES_KEPT).delete()


def lag(client: redis.Redis, most: int) -> dict[str, Any]:
    """How full the stream is, and what was turned away: ``alarm`` says in words what an operator must know."""
    length = int(client.xlen(USAGE_STREAM))
    lost = int(client.get(USAGE_LOST_KEY) or 0)
    alarm = ""
    if lost:
        alarm = f"{lost} usage records were turned away by a full stream: what they cost is counted nowhere."
    elif length > most * ALARM_AT:
        alarm = f"{length} usage records wait in Redis of {most} that may: is a controller running?"
    return {"records": length, "lost": lost, "alarm": alarm}


def _read(client: redis.Redis, last_id: str, count: int = BATCH) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found: Any = client.xrange(USAGE_STREAM, min=f"({last_id}", max="+", count=count)
    if not found and last_id != FIRST:
        _never_behind(client, last_id)
    return found


def _never_behind(client: redis.Redis, last_id: str) -> None:
    """A Redis that came back empty, with a clock that is behind, would give out ids that were read already."""
    try:
        newest = client.xinfo_stream(USAGE_STREAM)["last-generated-id"].decode()
    except redis.ResponseError:  # there is no stream
        client.xgroup_create(USAGE_STREAM, "mmserve", id="$", mkstream=True)
        client.xgroup_destroy(USAGE_STREAM, "mmserve")
        newest = FIRST
    if _ordered(newest) < _ordered(last_id):
        client.execute_command("XSETID", USAGE_STREAM, last_id)


def _ordered(entry_id: str) -> tuple[int, int]:
    at, _, number = entry_id.partition("-")
    return int(at), int(number or 0)


def _decoded(entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> tuple[list[UsageRecord], int]:
    """The records that can be read and belong to a time, and how many cannot."""
    records, unreadable = [], 0
    for entry_id, fields in entries:
        try:
            record = _decode(fields[b"record"])
            datetime.datetime.fromtimestamp(record.at, datetime.UTC)
        except (msgspec.MsgspecError, KeyError, ValueError, OverflowError, OSError) as error:
            unreadable += 1
            log.error("usage record %s cannot be read: %s", entry_id.decode(), error)
        else:
            records.append(record)
    return records, unreadable


def _tell_experiments(records: list[UsageRecord]) -> None:
    """In the same transaction; what they cannot count must not keep money from being counted."""
    try:
        settle_experiments(records)
    except DatabaseError:
        raise
    except Exception:
        log.exception("the experiments could not count %d records", len(records))


def _write_hours(sums: dict[HourKey, dict[str, int]]) -> None:
    known = {
        tuple(getattr(row, name) for name in HOUR_KEYS): row
        for row in UsageHour.objects.filter(
            hour__in={place[0] for place in sums}, key__in={one[1] for one in sums}
        )
    }
    new, changed = [], []
    for place, more in sums.items():
        row = known.get(place)
        if row is None:
            new.append(UsageHour(**dict(zip(HOUR_KEYS, place, strict=True)), **more))
            continue
        for name, amount in more.items():
            setattr(row, name, getattr(row, name) + amount)
        changed.append(row)
    UsageHour.objects.bulk_create(new, batch_size=500)
    UsageHour.objects.bulk_update(changed, COUNTS, batch_size=200)


def _write_minutes(sums: dict[MinuteKey, dict[str, Any]]) -> None:
    known = {
        tuple(getattr(row, name) for name in MINUTE_KEYS): row
        for row in StatsMinute.objects.filter(minute__in={place[0] for place in sums})
    }
    new, changed = [], []
    for place, more in sums.items():
        row = known.get(place)
        if row is None:
            new.append(StatsMinute(**dict(zip(MINUTE_KEYS, place, strict=True)), **more))
            continue
        for name in MINUTE_SUMS:
            setattr(row, name, getattr(row, name) + more[name])
        for name in MINUTE_MAPS:
            histogram.merge(getattr(row, name), more[name])
        changed.append(row)
    StatsMinute.objects.bulk_create(new, batch_size=500)
    StatsMinute.objects.bulk_update(changed, (*MINUTE_SUMS, *MINUTE_MAPS), batch_size=200)
