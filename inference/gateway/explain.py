"""The body of ``POST /v1/routing/explain``."""

from __future__ import annotations

from typing import Any

from routing.core.decision import Decision


def explanation(decision: Decision) -> dict[str, Any]:
    """What was chosen and why the others were not."""
    return {
        "id": decision.id,
        "model": decision.served_id,
        "chosen": decision.chosen,
        "chain": list(decision.chain),
        "candidates": [
            {"id": one.id, "eligible": one.eligible, "reasons": list(one.reasons), "scores": dict(one.scores)}
            for one in decision.candidates
        ],
        "revision": decision.revision,
    }
