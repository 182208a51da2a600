"""What a route does now, and what a draft of it would: who is eligible and why not, shares, cost, predicted latency."""

from __future__ import annotations

from dataclasses import dataclass, field

from routing.core.decision import Assigned, Candidate, RequestFacts, decide_among
from routing.core.replay import IMAGINED, NOBODY, Outcome, Replay, imagined, replay
from routing.core.route import RouteEntry
from routing.situation import Situation

# A usual request, to show what each candidate would cost and take.
PROMPT_TOKENS, OUTPUT_TOKENS = 200, 200
# How many decisions a draft is tried out on.
REPLAYED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One route as it would decide a usual request now."""

    candidates: tuple[Candidate, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)  # by served id, of the usual request
    refused: float = 0.0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A draft beside the route as it is."""

    draft: Effect
    replay: Replay
    real: bool  # the requests are decisions of the past; else they are made up, since there is none
    rows: tuple[tuple[str, float, float], ...]  # served id, share before and after


def effect_of(route: RouteEntry, now: Situation, *, requests: int = IMAGINED) -> Effect:
    """Who would serve; a share is of usual requests that differ in their id only."""
    slate = now.table.slate_of(route)
    usual = RequestFacts(
        decision_id="usual",
        model=route.id,
        prompt_tokens_estimate=PROMPT_TOKENS,
        max_tokens=OUTPUT_TOKENS,
    )
    decision = decide_among(now.table, now.live, usual, Assigned(slate=slate))
    shares = dict(_outcome(route, now, requests).shares)
    refused = shares.pop(NOBODY, 0.0)
    return Effect(candidates=decision.candidates, shares=shares, refused=refused, problems=slate.problems)


def preview_of(draft: RouteEntry, now: Situation) -> Preview:
    """What the route's last decisions, in ``now``, would have become; without any, what usual requests would."""
    past = now.decisions
    found = replay(past or imagined(draft.id), now.table, now.live, draft)
    names = dict.fromkeys([*found.after.shares, *found.before.shares])
    return Preview(
        draft=effect_of(draft, now),
        replay=found,
        real=bool(past),
        rows=tuple(
            (name, found.before.shares.get(name, 0.0), found.after.shares.get(name, 0.0)) for name in names
        ),
    )


def _outcome(route: RouteEntry, now: Situation, requests: int) -> Outcome:
    return replay(imagined(route.id, requests), now.table, now.live, route).after
