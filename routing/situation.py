"""What pages and commands need to try a route out: the table, the live state, and what was decided lately.

Rows of deployments and replicas are another app's, above this one; it says once, at its start, where to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from routing.core.decision import RequestFacts
from routing.core.live import LiveColumns
from routing.core.table import RoutingTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """As it is now; ``decisions`` are the newest first, at most as many as asked for."""

    table: RoutingTable
    live: LiveColumns
    decisions: Sequence[RequestFacts] = ()


_source: Callable[[int], Situation] | None = None


def provide(source: Callable[[int], Situation]) -> None:
    """From now on ``source(decisions)`` is asked."""
    global _source
    _source = source


def situation(decisions: int = 0) -> Situation:
    """How it is now, with the last decisions."""
    assert _source is not None, "inference.apps provides it"
    return _source(decisions)
