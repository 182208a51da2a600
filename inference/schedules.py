"""Keeps hot what a schedule says: wished for and pinned from a load's time before a window opens until it closes."""

from __future__ import annotations

import logging
from datetime import datetime

from django.db import transaction

from inference.capacity.schedule import Window, hot_until, parse_days
from inference.models import Deployment
from registry.models import VersionState
from registry.revision import bump

log = logging.getLogger(__name__)

ACTOR = "schedule"
# Loads do not always take what they take on the average.
LEAD_SHARE = 1.25
UNKNOWN_LOAD_S = 30.0


def windows_of(deployment: Deployment) -> list[Window]:
    """Its rows as values."""
    return [
        Window(days=parse_days(row.days), start=row.start, end=row.end, zone=row.timezone)
        for row in deployment.schedules.all()
    ]


def keep_hot(now: datetime) -> None:
    """Open and close windows: at its opening a deployment is wished for; an operator's unload during it stays."""
    scheduled = Deployment.objects.exclude(schedules=None) | Deployment.objects.exclude(hot_since=None)
    for row in scheduled.distinct().select_related("version").prefetch_related("schedules"):
        lead_s = LEAD_SHARE * (row.usual_load_s or UNKNOWN_LOAD_S)
        until = hot_until(windows_of(row), now, lead_s)
        if until is None and row.hot_since is not None:
            _close(row)
        elif until is not None and row.hot_since is None and row.version.state == VersionState.READY:
            _open(row, now, until)


@transaction.atomic
def _open(row: Deployment, now: datetime, until: datetime) -> None:
    wish = {"replicas": max(1, row.replicas), "asleep": False, "wanted_at": None, "failure": ""}
    if Deployment.objects.filter(pk=row.pk, hot_since=None).update(hot_since=now, **wish):
        row.replica_set.filter(state="failed", superseded=False).update(superseded=True)
        bump(
            "deployment.hot", row.name, ACTOR, data={"until": until.isoformat(), "replicas": wish["replicas"]}
        )
        log.info("%s is kept hot until %s", row.name, until)


@transaction.atomic
def _close(row: Deployment) -> None:
    if Deployment.objects.filter(pk=row.pk).exclude(hot_since=None).update(hot_since=None):
        bump("deployment.no_longer_hot", row.name, ACTOR)
        log.info("%s is no longer kept hot", row.name)
