"""Which decisions are written down: all of them while few are made, a sample of many; never a prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from inference.gateway.auth import KeyGrant
from inference.gateway.usage import COMPLETED
from routing.core.affinity import Preference
from routing.core.decision import Decision, RequestFacts
from routing.core.records import AttemptRecord, DecisionRecord, UsageRecord

# A decision over thousands of candidates would be a large thing to keep: the chosen ones, and the first others.
MAX_CANDIDATES = 200
# This many seconds' worth may come at once.
BURST_S = 2.0

encode = msgspec.json.Encoder().encode


class DecisionLog:
    """Decides what is kept: up to ``per_s`` of those that went well, and as many of the others."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._places = {True: per_s * BURST_S, False: per_s * BURST_S}
        self._filled_at = time.monotonic()

    def wants(self, outcome: str, fallbacks: int = 0) -> bool:
        """Whether this one is kept; a True takes a place."""
        if not self.has_place(outcome, fallbacks):
            return False
        self._places[outcome == COMPLETED and not fallbacks] -= 1
        return True

    def has_place(self, outcome: str, fallbacks: int = 0) -> bool:
        """Whether the next one of this kind would be kept."""
        if self._per_s <= 0:
            return False
        now = time.monotonic()
        if now > self._filled_at:
            more = (now - self._filled_at) * self._per_s
            for kind, places in self._places.items():
                self._places[kind] = min(self._per_s * BURST_S, places + more)
            self._filled_at = now
        return self._places[outcome == COMPLETED and not fallbacks] >= 1


def decision_record(
    grant: KeyGrant,
    endpoint: str,
    facts: RequestFacts,
    decision: Decision,
    usage: UsageRecord,
    *,
    attempts: Sequence[AttemptRecord] = (),
    predicted_cost_nano: int | None = None,
    replica: str = "",
    preference: Preference | None = None,
) -> bytes:
    """The record as JSON; of a refused request, ``usage`` is all zeros."""
    explained = decision.explained(MAX_CANDIDATES)
    first = decision.chain[0] if decision.chain else None
    return encode(
        DecisionRecord(
            id=decision.id,
            at=usage.at,
            key=grant.id,
            team=grant.team,
            endpoint=endpoint,
            facts=facts,
            decision=explained,
            candidates_left_out=decision.looked_at - len(explained.candidates),
            assignments=usage.assignments,
            attempts=list(attempts),
            predicted_ttft_s=first.ttft_s if first else None,
            predicted_tpot_s=first.tpot_s if first else None,
            predicted_cost_nano=predicted_cost_nano,
            outcome=usage.outcome,
            status=usage.status,
            served_id=usage.served_id,
            deployment=usage.deployment,
            replica=replica,
            preferred=preference.replica if preference else "",
            preferred_why=preference.why if preference else "",
            ttft_s=usage.ttft_s,
            tpot_s=usage.tpot_s,
            e2e_s=usage.e2e_s,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            cost_nano=usage.cost_nano,
        )
    )
