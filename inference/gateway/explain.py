"""The body of ``POST /v1/routing/explain``."""

from __future__ import annotations

from typing import Any

from routing.core.affinity import Preference
from routing.core.decision import Decision


def explanation(decision: Decision, preference: Preference | None) -> dict[str, Any]:
    """What was chosen and why the others were not; ``preference`` is among the replicas of what was chosen."""
    found = decision.explained()
    return {
        "id": found.id,
        "model": found.served_id,
        "asked": found.model,
        "route": found.route,
        "policy": found.policy,
        "chosen": found.chosen,
        "chain": [link.id for link in found.chain],
        "candidates": [
            {
                "id": one.id,
                "model": one.served_id,
                "eligible": one.eligible,
                "reasons": list(one.reasons),
                "scores": dict(one.scores),
            }
            for one in found.candidates
        ],
        "assignments": [{"experiment": one.experiment, "arm": one.arm} for one in found.assignments],
        "replica": {"preferred": preference.replica or None, "why": preference.why} if preference else None,
        "problems": list(found.problems),
        "revision": found.revision,
    }
