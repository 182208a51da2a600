"""What a model's aliases meant at a time, from the append-only events; a deleted model has its history still."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from django.db.models import Q, QuerySet
from django.db.models.functions import Left
from django.utils.dateparse import parse_datetime

from registry.actions.aliases import DELETED, MADE_DEFAULT, PROMOTED, ROLLED_BACK
from registry.models import Event

MOVES = (PROMOTED, ROLLED_BACK, DELETED, MADE_DEFAULT)


@dataclass(slots=True)
class Meaning:
    """The aliases of a model at one moment: name to version, and which of them was the default."""

    aliases: dict[str, str] = field(default_factory=dict)
    default: str | None = None

    def follow(self, kind: str, alias: str, to: str | None, *, is_default: bool) -> None:
        """Apply one event."""
        if kind == DELETED:
            self.aliases.pop(alias, None)
            self.default = None if self.default == alias else self.default
        elif kind == MADE_DEFAULT:
            self.default = alias
        elif to is not None:
            self.aliases[alias] = to
            self.default = alias if is_default else self.default


def parse_moment(text: str) -> datetime.datetime | None:
    """ISO 8601 as a person types it, UTC where it names no zone; None for what is no date and time."""
    try:
        found = parse_datetime(text)
    except ValueError:
        return None
    return found.replace(tzinfo=found.tzinfo or datetime.UTC) if found else None


def events_of(model_name: str) -> QuerySet[Event]:
    """Everything that happened to a model, its versions and its aliases, the newest first."""
    return _beginning(f"{model_name}@", Q(subject=model_name))


def meaning_at(model_name: str, at: datetime.datetime) -> Meaning:
    """What each alias of the model meant at ``at``."""
    moves = _beginning(f"{model_name}@").filter(kind__in=MOVES, at__lte=at)
    meaning = Meaning()
    for kind, subject, data in moves.order_by("id").values_list("kind", "subject", "data"):
        # Events from before "default" was written: a model's first alias is its default.
        is_default = data.get("default", kind == PROMOTED and not meaning.aliases)
        meaning.follow(kind, subject.rpartition("@")[2], data.get("to"), is_default=is_default)
    return meaning


def _beginning(prefix: str, *others: Q) -> QuerySet[Event]:
    """Events whose subject begins so. SQLite's LIKE takes ``Echo`` for ``echo``: it narrows, the text decides."""
    wanted = Q(subject__startswith=prefix, head=prefix)
    for other in others:
        wanted |= other
    return Event.objects.alias(head=Left("subject", len(prefix))).filter(wanted)
