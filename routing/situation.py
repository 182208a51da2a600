"""What pages and commands need to try a route out: the table, the live state, and what was decided lately.

Rows of deployments and replicas are another app's, above this one; it says once, at its start, where to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from routing.core.decision import RequestFacts
from routing.core.live import LiveColumns
from routing.core.table import RoutingTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """As it is now; ``decisions`` are the newest first, of the model id that was asked for, at most as many."""

    table: RoutingTable
    live: LiveColumns
    decisions: Sequence[RequestFacts] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A kept decision whose prompt's traits are known, and the version that answered."""

    id: str
    served_id: str
    traits: tuple[float, ...]


class Source(Protocol):
    """Where to ask."""

    def now(self, decisions: int, model: str) -> Situation: ...

    def judged(self, ids: Sequence[str]) -> list[Judged]: ...


_source: Source | None = None


def provide(source: Source) -> None:
    """From now on this one is asked."""
    global _source
    _source = source


def situation(decisions: int = 0, model: str = "") -> Situation:
    """How it is now, with so many of the last decisions of requests for a model id."""
    return _asked().now(decisions, model)


def judged(ids: Sequence[str]) -> list[Judged]:
    """What is still kept of the decisions with these ids, of those that looked at the prompt."""
    return _asked().judged(ids)


def _asked() -> Source:
    assert _source is not None, "inference.apps provides it"
    return _source
