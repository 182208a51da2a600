"""The body of ``POST /v1/routing/explain``."""

from __future__ import annotations

from typing import Any

from routing.core.decision import Decision


def explanation(decision: Decision) -> dict[str, Any]:
    """What was chosen and why the others were not."""
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
        "problems": list(found.problems),
        "revision": found.revision,
    }
