"""The gateway with the replica drawn by lot for every request, whatever its prompt begins with: a benchmark's peer.

The wish travels and is held as affinity's own is, so that the choice is all that differs.
"""

from __future__ import annotations

import random

from inference.gateway import runtime
from inference.gateway.affinity import Affinity
from inference.gateway.plan import Plan
from routing.core.affinity import Preference


class ByLot(Affinity):
    """Prefers any ready replica, each with the same chance."""

    def _find(self, plan: Plan, deployment: str) -> tuple[Preference | None, list[int]]:
        ready = self._live.ready(deployment)
        if len(ready) < 2:
            return None, []
        return Preference(random.choice(ready).replica, 0, 0), []


runtime.Affinity = ByLot  # type: ignore[misc]

from mmserve.asgi import application  # noqa: E402

__all__ = ["application"]
