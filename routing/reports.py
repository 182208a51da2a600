"""What was used and spent, grouped as asked: the command, REST and the admin ask here."""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Q, QuerySet, Sum
from django.db.models.functions import TruncDay
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from knox.models import get_token_model

from mmserve.errors import InvalidRequest
from routing.core.cost import in_usd
from routing.models import UsageHour
from routing.models.usage import COUNTS

TIMES = ("hour", "day")
NAMES = ("key", "team", "route", "model", "version", "arm")
DIMENSIONS = (*TIMES, *NAMES)
SUMS = ("requests", "errors", "cancelled", "prompt_tokens", "cached_tokens", "completion_tokens")
DEFAULT_SINCE = datetime.timedelta(days=30)
AGO = re.compile(r"([1-9][0-9]{0,5})([mhd])")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A report: rows by ``by``, of usage from ``since`` until ``until`` (whole hours, UTC) that is of these names."""

    by: tuple[str, ...] = ("model",)
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def begins_at(self) -> datetime.datetime:
        """The beginning of the first hour."""
        since = self.since or timezone.now() - DEFAULT_SINCE
        return since.astimezone(datetime.UTC).replace(minute=0, second=0, microsecond=0)


def usage_rows(asked: Asked) -> QuerySet[UsageHour]:
    """The rows that a report is made of."""
    rows = UsageHour.objects.of_names(asked.names).filter(hour__gte=asked.begins_at)
    return rows if asked.until is None else rows.filter(hour__lt=asked.until)


def report(
    asked: Asked, *, limit: int = 100, cursor: str | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of groups in the order of ``by``, and the cursor of the next one."""
    rows = usage_rows(asked)
    if "day" in asked.by:
        rows = rows.annotate(day=TruncDay("hour", tzinfo=datetime.UTC))
    groups: Any = rows.values(*asked.by).annotate(**_sums()).order_by(*asked.by)
    if cursor is not None:
        groups = groups.filter(_after(asked.by, _read_cursor(asked.by, cursor)))
    found = list(groups[: limit + 1])
    page = [_row(asked.by, group) for group in found[:limit]]
    name_keys(page)
    return page, _write_cursor(asked.by, found[limit - 1]) if len(found) > limit else None


def top(asked: Asked, limit: int) -> list[dict[str, Any]]:
    """The groups that cost most (then: those with most requests)."""
    groups: Any = usage_rows(asked).values(*asked.by).annotate(**_sums())
    page = [
        _row(asked.by, group)
        for group in groups.order_by("-sum_cost_nano", "-sum_requests", *asked.by)[:limit]
    ]
    name_keys(page)
    return page


def totals(asked: Asked) -> dict[str, Any]:
    """All of it in one row."""
    return _row((), usage_rows(asked).aggregate(**_sums()))


def name_keys(page: Sequence[dict[str, Any]]) -> None:
    """Put a key's name beside its id; None for one that is gone."""
    ids = {row["key"] for row in page if UUID.fullmatch(row.get("key", ""))}
    if any("key" in row for row in page):
        names = {str(key.pk): key.name for key in get_token_model().objects.filter(pk__in=ids)}
        for row in page:
            row["key_name"] = names.get(row["key"])


def moment(text: str, name: str) -> datetime.datetime:
    """``2026-11-24T14:00`` (UTC where it names no zone) or ``7d``, ``24h``, ``30m`` ago."""
    ago = AGO.fullmatch(text)
    try:
        if ago is not None:
            return timezone.now() - datetime.timedelta(**{UNITS[ago[2]]: int(ago[1])})
        found = parse_datetime(text) or parse_datetime(f"{text}T00:00")
        if found is not None:
            found = found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
            return found.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        found = None
    raise InvalidRequest(f"{name}: {text[:50]!r} is no time like 2026-11-24T14:00, 7d or 24h", param=name)


def dimensions(text: str) -> tuple[str, ...]:
    """``day,model`` as a tuple; each of DIMENSIONS once."""
    found = tuple(part.strip() for part in text.split(","))
    for part in found:
        if part not in DIMENSIONS:
            raise InvalidRequest(f"by: {part[:50]!r} is none of {', '.join(DIMENSIONS)}", param="by")
    if len(set(found)) != len(found):
        raise InvalidRequest("by: each only once", param="by")
    return found


def _sums() -> dict[str, Sum]:
    return {f"sum_{name}": Sum(name) for name in COUNTS}


def _row(by: Sequence[str], group: Mapping[str, Any]) -> dict[str, Any]:
    sums = {name: group[f"sum_{name}"] or 0 for name in COUNTS}
    return {
        **{name: group[name] for name in by},
        **{name: sums[name] for name in SUMS},
        "engine_s": round(sums["engine_us"] / 1e6, 3),
        "cost_usd": in_usd(sums["cost_nano"]),
        "other_cost_usd": in_usd(sums["other_cost_nano"]),
    }


def _after(by: Sequence[str], last: Sequence[Any]) -> Q:
    """``(a, b, …) > (x, y, …)`` as every database understands it."""
    found = Q()
    for place in range(len(by)):
        equal = {name: last[before] for before, name in enumerate(by[:place])}
        found |= Q(**equal, **{f"{by[place]}__gt": last[place]})
    return found


def _write_cursor(by: Sequence[str], group: Mapping[str, Any]) -> str:
    values = [group[name].isoformat() if name in TIMES else group[name] for name in by]
    return base64.urlsafe_b64encode(json.dumps([list(by), values]).encode()).decode().rstrip("=")


def _read_cursor(by: Sequence[str], cursor: str) -> list[Any]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        given_by, values = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if list(by) != given_by or len(values) != len(by) or not all(isinstance(one, str) for one in values):
            raise ValueError
        if any("\x00" in one for one in values):
            raise ValueError
        return [
            datetime.datetime.fromisoformat(value) if name in TIMES else value
            for name, value in zip(by, values, strict=True)
        ]
    except (ValueError, TypeError, binascii.Error) as error:
        raise InvalidRequest("cursor: not one of this report", param="cursor") from error
