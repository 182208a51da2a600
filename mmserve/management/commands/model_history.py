"""`manage.py model_history NAME`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone
from django.utils.text import Truncator

from mmserve.command import DataCommand
from mmserve.errors import InvalidRequest
from registry import history
from registry.lookup import find_model
from registry.models import Event

MAX_EVENTS = 10_000
MAX_CHANGE_CHARS = 60


class Command(DataCommand):
    help = (
        "Show what a model's aliases meant at a time, and what happened until then. "
        "Exit codes: 0 done, 3 no such model, 5 a wrong value."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="of a model, deleted ones too")
        parser.add_argument("--at", help="ISO 8601, UTC where it names no zone; now if left out")
        parser.add_argument("--limit", type=int, default=20, help="events")

    def run(self, *, name: str, at: str | None, limit: int, **options: Any) -> dict[str, Any]:
        moment = timezone.now()
        if at is not None:
            found = history.parse_moment(at)
            if found is None:
                raise InvalidRequest(f"--at: {at!r} is no date and time, e.g. 2026-11-24T14:03", param="at")
            moment = found
        if not 0 < limit <= MAX_EVENTS:
            raise InvalidRequest(f"limit is {limit}, not from 1 to {MAX_EVENTS}", param="limit")
        events = history.events_of(name)
        if not events.exists():
            find_model(name)
        meaning = history.meaning_at(name, moment)
        rows = events.filter(at__lte=moment)[:limit]
        return {
            "model": name,
            "at": moment,
            "default": meaning.default,
            "aliases": meaning.aliases,
            "events": [_as_data(row) if options["json"] else _as_line(row) for row in rows],
        }


def _as_data(row: Event) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("at", "kind", "subject", "actor", "reason", "data")}


def _as_line(row: Event) -> dict[str, Any]:
    """What fits on a terminal; the reason, which may be long, stands last."""
    told = {name: getattr(row, name) for name in ("at", "kind", "subject", "actor")}
    return {**told, "change": Truncator(row.change).chars(MAX_CHANGE_CHARS) or None, "reason": row.reason}
