"""Whether any node is heard of: where none is, no engine runs, whatever was written down last."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from django.conf import settings
from django.utils import timezone

from inference.models import Node
from inference.status import ASLEEP, DRAINING, LOADING, READY, UNLOADED, Status


def silent_s(node: Node, now: datetime) -> float | None:
    """For how many seconds a node has been silent for longer than its lease; None: it is heard of."""
    if node.last_seen is None:
        return float("inf")
    passed = (now - node.last_seen).total_seconds()
    return passed if passed > settings.NODE_LEASE_S else None


def all_silent(nodes: Iterable[Node]) -> str | None:
    """In words, that no node is heard of; None where one is."""
    now = timezone.now()
    found = [silent_s(node, now) for node in nodes]
    if None in found:
        return None
    last_s = min((one for one in found if one is not None), default=float("inf"))
    if last_s == float("inf"):
        return "no node has reported yet"
    return f"no node runs; the last one was heard of {_ago(last_s)} ago"


def heard(status: Status, silence: str | None) -> Status:
    """The status as it is while no node is heard of: what was served, or wished for, is not."""
    if silence is None or status.status not in (LOADING, READY, ASLEEP, DRAINING):
        return status
    return Status(status=UNLOADED, reason=f"{silence.capitalize()}.")


def _ago(seconds: float) -> str:
    for unit, words in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {words}"
    return f"{seconds:.0f} seconds"
