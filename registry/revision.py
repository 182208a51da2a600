"""The configuration's revision: a monotonic number, bumped together with the event that explains it."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import F
from django.dispatch import Signal

from registry.models import ConfigRevision, Event

ROW = 1

# Sent once a change is committed, with ``revision``, ``kind`` and ``subject``. A receiver that fails is
# logged by Django and harms nobody: whoever misses the push finds the new number at its next poll.
configuration_changed = Signal()


def current() -> int:
    """The revision that everyone should run."""
    return ConfigRevision.objects.filter(pk=ROW).values_list("number", flat=True).first() or 0


@transaction.atomic
def bump(kind: str, subject: str, actor: str, reason: str = "", data: dict[str, Any] | None = None) -> int:
    """Take the next revision and write its event; both live or die with the caller's transaction."""
    if not ConfigRevision.objects.filter(pk=ROW).update(number=F("number") + 1):
        ConfigRevision.objects.get_or_create(pk=ROW)
        ConfigRevision.objects.filter(pk=ROW).update(number=F("number") + 1)
    number = ConfigRevision.objects.values_list("number", flat=True).get(pk=ROW)
    Event.objects.create(
        kind=kind, subject=subject, actor=actor, reason=reason, data=data or {}, revision=number
    )
    transaction.on_commit(lambda: _announce(number, kind, subject), robust=True)
    return number


def _announce(revision: int, kind: str, subject: str) -> None:
    configuration_changed.send_robust(sender=ConfigRevision, revision=revision, kind=kind, subject=subject)
