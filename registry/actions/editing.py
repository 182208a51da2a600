"""Which fields an action may set."""

from __future__ import annotations

from typing import Any

from mmserve.errors import InvalidRequest


def check_editable(changes: dict[str, Any], editable: frozenset[str]) -> None:
    """Refuse a field that this action does not change."""
    for field in changes:
        if field not in editable:
            raise InvalidRequest(f"{field} cannot be changed; {', '.join(sorted(editable))} can", param=field)
