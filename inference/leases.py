"""Nodes renew a lease with every report. Who has stopped is lost, by the observer's own clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime


class NodeLeases:
    """Remembers when each node's last report was first seen here, as leader election in Kubernetes does.

    So hosts' clocks do not matter, and an observer that was away itself (or could not reach the database) gives
    everybody a whole lease before it concludes anything.
    """

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._seen: dict[int, tuple[datetime, float]] = {}
        self._looked_at = float("-inf")

    def lost(self, reports: Mapping[int, datetime], now: float) -> set[int]:
        """Nodes (by key) whose report has been the same for a whole lease; ``now`` is monotonic."""
        if now - self._looked_at > self.lease_s / 2:
            self._seen.clear()
        self._looked_at = now
        self._seen = {node: self._first(node, reports[node], now) for node in reports}
        return {node for node, (_, since) in self._seen.items() if now - since > self.lease_s}

    def _first(self, node: int, report: datetime, now: float) -> tuple[datetime, float]:
        known = self._seen.get(node)
        return known if known is not None and known[0] == report else (report, now)
