"""Refused requests, counted: a flood of them is a few records a second, not one each."""

from __future__ import annotations

from inference.gateway.usage import UsageRecord

Kind = tuple[str, str, str, str, int]
MAX_KINDS = 1000


class Refusals:
    """Owned by the event loop; ``take`` empties it."""

    def __init__(self) -> None:
        self._records: dict[Kind, UsageRecord] = {}

    def count(self, record: UsageRecord) -> None:
        """So many more of its kind; beyond MAX_KINDS in one interval, only of a kind that is known."""
        kind = (record.key, record.route, record.served_id, record.outcome, record.status)
        known = self._records.get(kind)
        if known is not None:
            known.count += record.count
        elif len(self._records) < MAX_KINDS:
            self._records[kind] = record

    def take(self) -> list[UsageRecord]:
        """What was refused since the last call, a record a kind."""
        records, self._records = self._records, {}
        return list(records.values())
