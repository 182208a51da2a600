"""Routing's rows, one module a kind."""

from routing.models.budgets import Budget, Team
from routing.models.usage import StatsMinute, UsageCursor, UsageHour

__all__ = ["Budget", "StatsMinute", "Team", "UsageCursor", "UsageHour"]
