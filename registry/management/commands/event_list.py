"""`manage.py event_list`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand
from mmserve.errors import InvalidRequest
from registry.models import Event

MAX_EVENTS = 10_000


class Command(DataCommand):
    help = "List events, the newest first. Exit codes: 0 done, 5 a wrong value."
    columns = ("at", "revision", "kind", "subject", "actor", "reason")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--subject", help="e.g. name@alias")
        parser.add_argument("--kind", help="e.g. alias.promoted")
        parser.add_argument("--limit", type=int, default=50)

    def run(self, *, subject: str | None, kind: str | None, limit: int, **_: Any) -> list[dict[str, Any]]:
        if not 0 < limit <= MAX_EVENTS:
            raise InvalidRequest(f"limit is {limit}, not from 1 to {MAX_EVENTS}", param="limit")
        events = Event.objects.all()
        if subject is not None:
            events = events.filter(subject=subject)
        if kind is not None:
            events = events.filter(kind=kind)
        return list(events.values("id", *self.columns, "data")[:limit])
