"""What past decisions would become under a draft of a route: traffic moved, cost, predicted latency. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from routing.core.decision import Assigned, Decision, RequestFacts, decide_among
from routing.core.live import LiveColumns
from routing.core.route import RouteEntry
from routing.core.slate import Slate
from routing.core.table import RoutingTable

NOBODY = "(refused)"
# How many requests are made up for a route that nobody has asked for yet.
IMAGINED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a slate makes of some requests; means are over those that somebody serves."""

    shares: Mapping[str, float] = field(default_factory=dict)  # by served id, and NOBODY
    cost_usd: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The same requests under the route as it is and under the draft, both against the present live state."""

    requests: int
    moved: int  # other version than before
    before: Outcome
    after: Outcome

    @property
    def moved_share(self) -> float:
        """Of all requests."""
        return self.moved / self.requests if self.requests else 0.0


def replay(
    requests: Iterable[RequestFacts], table: RoutingTable, live: LiveColumns, draft: RouteEntry
) -> Replay:
    """Decide each request twice. Nothing of the past's load is known: both sides see the present one."""
    known = table.routes.get(draft.id)
    before = table.slate_of(known) if known is not None and known.enabled else None
    after = table.slate_of(draft) if draft.enabled else None
    pairs = [(_decided(table, live, one, before), _decided(table, live, one, after)) for one in requests]
    moved = sum(_served(old) != _served(new) for old, new in pairs)
    return Replay(
        requests=len(pairs),
        moved=moved,
        before=_outcome([old for old, _ in pairs]),
        after=_outcome([new for _, new in pairs]),
    )


def imagined(route: str, count: int = IMAGINED) -> list[RequestFacts]:
    """Plain requests for a route, alike but for their ids: what its shares are without a past."""
    usual = RequestFacts(decision_id="", model=route, prompt_tokens_estimate=200, max_tokens=200)
    return [replace(usual, decision_id=f"imagined-{number}") for number in range(count)]


def _decided(
    table: RoutingTable, live: LiveColumns, request: RequestFacts, slate: Slate | None
) -> Decision | None:
    return None if slate is None else decide_among(table, live, request, Assigned(slate=slate))


def _served(decision: Decision | None) -> str:
    return decision.chain[0].served_id if decision is not None and decision.chain else NOBODY


def _outcome(decisions: list[Decision | None]) -> Outcome:
    links = [decision.chain[0] for decision in decisions if decision is not None and decision.chain]
    counts = Counter(map(_served, decisions))
    if not links:
        return Outcome(shares={name: count / len(decisions) for name, count in counts.items()})
    return Outcome(
        shares={name: count / len(decisions) for name, count in counts.most_common()},
        cost_usd=sum(link.cost_usd for link in links) / len(links),
        ttft_s=sum(link.ttft_s for link in links) / len(links),
        tpot_s=sum(link.tpot_s for link in links) / len(links),
    )
