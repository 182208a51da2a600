"""Rows of routing as the commands print them."""

from __future__ import annotations

from typing import Any

from routing.core.cost import in_usd, to_nano
from routing.ledgers import standing
from routing.models import Budget
from routing.spending import whom_names


def budget_fields(row: Budget) -> dict[str, Any]:
    """A budget and how it stands."""
    now = standing(row)
    return {
        "scope": row.scope,
        "subject": row.subject,
        "name": whom_names([row]).get(row.subject, row.subject),
        "period": row.period,
        "limit_usd": in_usd(to_nano(row.limit_usd)),
        "spent_usd": in_usd(now.spent_nano),
        "held_usd": in_usd(now.held_nano),
        "enabled": row.enabled,
    }
