"""Which decisions are written down: all of them while few are made, a sample of many; never a prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

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
ROUNDING_S = 1e-6

encode = msgspec.json.Encoder().encode


class DecisionLog:
    """Decides what is kept: up to ``per_s`` of those that went well, and as many of the others."""

    def __init__(self, per_s: float) -> None:
        self._each_s = 1 / per_s if per_s > 0 else math.inf
        # By kind: until when the places that were taken would last, at the rate (a generic cell rate algorithm,
        # ITU-T I.371).
        self._taken_until = {True: 0.0, False: 0.0}

    def wants(self, outcome: str, fallbacks: int = 0) -> bool:
        """Whether this one is kept; a True takes a place."""
        if not self.has_place(outcome, fallbacks):
            return False
        kind = outcome == COMPLETED and not fallbacks
        self._taken_until[kind] = max(self._taken_until[kind], time.monotonic()) + self._each_s
        return True

    def has_place(self, outcome: str, fallbacks: int = 0) -> bool:
        """Whether the next one of this kind would be kept."""
        if self._each_s == math.inf:
            return False
        until = self._taken_until[outcome == COMPLETED and not fallbacks]
        return max(0.0, until - time.monotonic()) + self._each_s <= max(BURST_S, self._each_s) + ROUNDING_S


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
    """The record as JSON; of a refused request, ``usage`` is all zeros. Who asked, beyond the key, is left out."""
    if facts.user or facts.session:
        facts = replace(facts, user="", session="")
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
